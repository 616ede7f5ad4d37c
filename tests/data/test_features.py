"""Features in place of pictures: each picture once, kept on disk, whatever happens meanwhile."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import settings, tree
from PIL import Image
from test_image_folder import TWO, make_folder, noise

from clrun.data import datasets, features, folder_division, folder_features, image_folder
from clrun.data.class_folders import pictures_in
from clrun.data.feature_record import FeatureRecord
from clrun.data.file_digests import digest_of
from clrun.data.folder_layouts import find
from clrun.data.samples import Arrays
from clrun.system.errors import UsageError

pytestmark = pytest.mark.usefixtures("cache_home")


class Means:
    """An extractor without a network: the means of the quarters of a picture, and which pictures it was shown."""

    about, record = "features.target=tests.Means", FeatureRecord((3, 8, 8), "weights", None)

    def __init__(self, digest="00", width=4, fails_after=None):
        self.digest, self.width, self.fails_after = digest, width, fails_after
        self.shown: Counter[bytes] = Counter()
        self.calls: list[int] = []

    def __call__(self, pictures):
        self.calls.append(len(pictures))
        if self.fails_after is not None and sum(self.calls) > self.fails_after:
            raise KeyboardInterrupt
        self.shown.update(picture.tobytes() for picture in pictures)
        return means(pictures)[:, : self.width]


def means(pictures):
    half = pictures.shape[-1] // 2
    corners = [pictures[:, 0, i : i + half, j : j + half] for i in (0, half) for j in (0, half)]
    return np.stack([corner.mean((1, 2)) for corner in corners], 1).astype(np.float32)


def load(root, extractor, **options):
    values = settings("image_folder", root=str(root), size=8, **options) | {"features": "module"}
    return datasets.load(values, None, lambda shape: extractor)


def files_of(cache_home):
    return sorted((cache_home / "clrun" / "features").iterdir())


def test_the_pictures_of_a_folder_become_features(tmp_path, cache_home, capsys):
    make_folder(tmp_path, TWO)
    plain, extractor = datasets.load(settings("image_folder", root=str(tmp_path), size=8)), Means()
    capsys.readouterr()
    samples = load(tmp_path, extractor)
    np.testing.assert_array_equal(samples.x.numpy(), means(plain.x.numpy()))
    assert samples.x.dtype == torch.float32 and samples.shape == (4,)
    assert torch.equal(samples.y, plain.y) and samples.train == plain.train and samples.classes == plain.classes
    assert samples.fingerprint != plain.fingerprint and samples.folder == plain.folder
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "features of 10 pictures" in said and " s; " in said
    again = load(tmp_path, never := Means())
    assert torch.equal(again.x, samples.x) and again.fingerprint == samples.fingerprint and not never.calls
    assert capsys.readouterr().err == "" and len(files_of(cache_home)) == 1


def test_another_network_or_other_pictures_are_extracted_anew(tmp_path, cache_home):
    make_folder(tmp_path, TWO)
    first = load(tmp_path, Means("00"))
    other = load(tmp_path, changed := Means("01", width=3))
    assert changed.calls == [10] and other.shape == (3,) and other.fingerprint != first.fingerprint
    noise(seed=9).save(tmp_path / "test" / "dog" / "01.png")
    more = load(tmp_path, added := Means("00"))
    assert added.calls == [11] and len(more.x) == 11 and more.fingerprint != first.fingerprint
    assert len(files_of(cache_home)) == 3


DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-100],
    "a bit": lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_anew(damage, tmp_path, cache_home, capsys):
    make_folder(tmp_path, TWO)
    first = load(tmp_path, Means())
    (file,) = files_of(cache_home)
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    assert torch.equal(load(tmp_path, again := Means()).x, first.x) and again.calls == [10]
    assert f"features: {file} is torn" in capsys.readouterr().err
    load(tmp_path, never := Means())
    assert not never.calls


@pytest.mark.parametrize("x", [np.zeros((9, 4), np.float32), np.zeros((10, 4)), np.zeros(10, np.float32)])
def test_a_cache_of_something_else_is_not_used(x, tmp_path, cache_home):
    make_folder(tmp_path, TWO)
    first = load(tmp_path, Means())
    (file,) = files_of(cache_home)
    np.savez(file, x=x, about=np.frombuffer(b"null", np.uint8))
    assert torch.equal(load(tmp_path, Means()).x, first.x)
    np.savez(file, x=np.array([{}], dtype=object), about=np.frombuffer(b"null", np.uint8))
    assert torch.equal(load(tmp_path, Means()).x, first.x)


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, cache_home, capsys):
    make_folder(tmp_path, TWO)
    cache_home.mkdir()
    (cache_home / "clrun").touch()
    assert len(load(tmp_path, Means()).x) == 10
    assert "features: " in (said := capsys.readouterr().err) and "nothing cached" in said


def test_broken_pictures_are_refused_or_left_out(tmp_path, cache_home, capsys):
    make_folder(tmp_path, TWO)
    (tmp_path / "train" / "dog" / "00.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"00.png is a broken picture .* dataset.skip_broken=true"):
        load(tmp_path, Means())
    assert files_of(cache_home) == [] if (cache_home / "clrun" / "features").exists() else True
    samples = load(tmp_path, Means(), skip_broken=True)
    plain = datasets.load(settings("image_folder", root=str(tmp_path), size=8, skip_broken=True))
    np.testing.assert_array_equal(samples.x.numpy(), means(plain.x.numpy()))
    assert torch.equal(samples.y, plain.y)
    capsys.readouterr()
    with pytest.raises(UsageError, match="broken picture"):
        load(tmp_path, never := Means())
    assert not never.calls and capsys.readouterr().err == "", "the refusal stands alone"


def deep(root, part, name, value):
    Image.fromarray(np.full((9, 9), value, np.uint16)).save(root / part / name / "deep.png")


@pytest.mark.parametrize("others", [TWO, {"train": {"cat": 0, "dog": 0}, "test": {"cat": 0, "dog": 0}}])
def test_pictures_of_more_than_8_bits(others, tmp_path, cache_home):
    """White follows from the brightest training picture; they are extracted once, too, and may be all there are."""
    make_folder(tmp_path, others)
    for value, (part, name) in enumerate([(p, n) for p in ("train", "test") for n in ("cat", "dog")], 1):
        deep(tmp_path, part, name, 800 * value)
    plain = datasets.load(settings("image_folder", root=str(tmp_path), size=8))
    samples = load(tmp_path, extractor := Means())
    np.testing.assert_array_equal(samples.x.numpy(), means(plain.x.numpy()))
    assert samples.folder == plain.folder and sum(extractor.calls) == len(plain.x)
    again = load(tmp_path, never := Means())
    assert torch.equal(again.x, samples.x) and again.folder == samples.folder and not never.calls


def test_a_feature_that_is_no_number_is_refused_by_name(tmp_path, cache_home):
    make_folder(tmp_path, TWO)

    class Holes(Means):
        def __call__(self, pictures):
            made = super().__call__(pictures)
            made[4, 2] = np.nan
            return made

    with pytest.raises(UsageError, match=r"a feature of .*train/dog/01.png is nan, which is no finite number") as error:
        load(tmp_path, Holes())
    assert "\n" not in str(error.value) and tree(cache_home / "clrun" / "features") == []


def many(tmp_path, pictures=40):
    make_folder(tmp_path, {"train": {"cat": pictures // 2, "dog": pictures // 2}, "test": {"cat": 1, "dog": 1}})
    return tmp_path


def whole(tmp_path, extractor, at_once):
    """The features of a folder, parts of which are kept while others are still to come."""
    read = image_folder.read(
        tmp_path, 8, None, tmp_path / "cache", extractor_of=lambda shape: extractor, features_at_once=at_once
    )
    return read.x


def test_what_was_interrupted_goes_on(tmp_path):
    many(tmp_path)
    expected = whole(tmp_path, Means("whole"), 1000)
    with pytest.raises(KeyboardInterrupt):
        whole(tmp_path, Means(fails_after=25), 10)
    kept = tree(tmp_path / "cache" / "features")
    assert len(kept) == 3, "two parts, and the file of the whole extraction"
    np.testing.assert_array_equal(whole(tmp_path, rest := Means(), 10), expected)
    assert rest.calls == [10, 10, 2], "the first twenty were there"
    assert len(tree(tmp_path / "cache" / "features")) == 2, "parts are gone when the whole is there"


def test_a_disk_that_is_full_is_said_twice(tmp_path, capsys):
    """Of the first part and of the whole, and not of the parts between."""
    many(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "features").touch()
    assert len(whole(tmp_path, Means(), 10)) == 42
    assert capsys.readouterr().err.count("features: ") == 2


def test_parts_stay_where_the_whole_cannot_be_written(tmp_path):
    """As on a disk that is full when the whole comes: the next command finds the parts."""
    many(tmp_path)

    class FillsTheDisk(Means):
        def __call__(self, pictures):
            if len(self.calls) == 4:
                names = [path.stem.rpartition("-")[0] for path in (tmp_path / "cache" / "features").iterdir()]
                (tmp_path / "cache" / "features" / f"{names[0]}.npz").mkdir()
            return super().__call__(pictures)

    made = whole(tmp_path, FillsTheDisk(), 10)
    np.testing.assert_array_equal(whole(tmp_path, never := Means(), 10), made)
    assert never.calls == []


def test_what_another_process_has_finished_is_not_made_again(tmp_path):
    many(tmp_path)

    class Overtaken(Means):
        def __call__(self, pictures):
            if not self.calls:
                whole(tmp_path, Means(), 10)
            return super().__call__(pictures)

    np.testing.assert_array_equal(whole(tmp_path, slow := Overtaken(), 10), whole(tmp_path, Means("01"), 1000))
    assert slow.calls == [10], "its first part"


def test_a_damaged_part_is_made_anew(tmp_path):
    many(tmp_path)
    expected = whole(tmp_path, Means("whole"), 1000)
    with pytest.raises(KeyboardInterrupt):
        whole(tmp_path, Means(fails_after=25), 10)
    part = next((tmp_path / "cache" / "features").glob("*-10.npz"))
    part.write_bytes(part.read_bytes()[:-50])
    np.testing.assert_array_equal(whole(tmp_path, rest := Means(), 10), expected)
    assert rest.calls == [10, 10, 10, 2]


def test_pictures_in_memory_become_features(tmp_path, cache_home):
    x = np.random.default_rng(0).integers(0, 256, (300, 1, 8, 8), np.uint8)
    arrays = Arrays(x, np.arange(300) % 3, 200, ("a", "b", "c"))
    made = features.with_features(arrays, lambda shape: Means(), tmp_path, "features=module")
    np.testing.assert_array_equal(made.x, means(x))
    assert made.train == 200 and made.classes == arrays.classes and made.fingerprint
    shapes = []
    again = features.with_features(arrays, lambda shape: shapes.append(shape) or Means(), tmp_path, "features=module")
    assert np.array_equal(again.x, made.x) and again.fingerprint == made.fingerprint and shapes == [(1, 8, 8)]
    other = features.with_features(arrays, lambda shape: Means("02"), tmp_path, "features=module")
    assert other.fingerprint != made.fingerprint


@pytest.mark.parametrize("x, found", [
    (np.zeros((4, 5), np.float32), "5 numbers of the type float32"),
    (np.zeros((4, 3, 8, 8), np.float32), "3 x 8 x 8 numbers of the type float32"),
    (np.zeros((4, 8), np.uint8), "8 numbers of the type uint8"),
])  # fmt: skip
def test_what_is_no_picture_is_refused(x, found, tmp_path):
    arrays = Arrays(x, np.array([0, 1, 0, 1]), 2, ("a", "b"))
    with pytest.raises(UsageError, match=f"needs pictures .* of this data set is {found}; leave features out"):
        features.with_features(arrays, lambda shape: Means(), tmp_path, "features=module")
    assert tree(tmp_path) == []


def test_decoding_stays_ahead_of_the_network_by_one_batch(tmp_path):
    """Memory holds the pictures of two batches, however slow the network is: the third is not opened before."""
    many(tmp_path, 40)
    layout = find(str(tmp_path), None)
    pictures = pictures_in(layout.train_folders, [])
    marks = np.array([np.frombuffer(digest_of(Path(one.path).read_bytes()), np.uint8) for one in pictures])
    division = folder_division.Division(layout, np.zeros(40, np.int64), 40, None)
    folder = folder_features.FolderFeatures(division, pictures, marks, tmp_path, "", 8, None, False)
    batches = folder.decoded(np.arange(40), None, at_once=10)
    rows, first = next(batches)
    assert rows.tolist() == list(range(10)) and all(isinstance(pixels, np.ndarray) for pixels in first)
    for picture in pictures[20:]:
        Path(picture.path).unlink()
    later = [found for _, found in batches]
    assert all(isinstance(pixels, np.ndarray) for pixels in later[0])
    assert later[1:] == [["No such file or directory"] * 10] * 2


def test_a_terminal_sees_a_bar(tmp_path, cache_home, monkeypatch, capsys):
    make_folder(tmp_path, TWO)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load(tmp_path, Means())
    said = capsys.readouterr().err
    assert "features of 10 pictures" in said and "100%" in said
    assert "clrun: features of 10 pictures" in said.splitlines()[-1], "the seconds stay when the bar is gone"


TWO_PROCESSES = """
import json, sys, time
from pathlib import Path
from test_features import Means, load
class Slow(Means):
    def __call__(self, pictures):
        Path(f"ready{sys.argv[2]}").touch()
        while len(list(Path().glob("ready*"))) < 2:
            time.sleep(0.01)
        return super().__call__(pictures)
print(json.dumps(load(sys.argv[1], Slow()).x.tolist()))
"""


def test_two_processes_at_once(tmp_path, cache_home, monkeypatch):
    """Both extract, and either's file is whole."""
    root = make_folder(tmp_path / "pictures", TWO)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    processes = [
        subprocess.Popen([sys.executable, "-c", TWO_PROCESSES, root, str(k)], cwd=tmp_path, stdout=subprocess.PIPE)
        for k in range(2)
    ]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert answers[0] == answers[1] == load(root, never := Means()).x.tolist() and not never.calls
    assert len(files_of(cache_home)) == 1
