"""Folders of the user's own pictures, on small files that the tests write themselves."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from loading import refusal, settings, tree
from PIL import Image, PngImagePlugin

from clrun.data import datasets, decoding
from clrun.data.file_digests import FileState, digest_of, digests
from clrun.system.errors import UsageError
from clrun.system.paths import CONF

pytestmark = pytest.mark.usefixtures("cache_home")


def noise(size=(40, 48), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def make_folder(root, shape):
    """Make folders and pictures: a number is how many pictures a class folder holds."""
    for name, inside in shape.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        if isinstance(inside, dict):
            make_folder(root / name, inside)
        else:
            for k in range(inside):
                noise(seed=len(name) * 100 + k).save(root / name / f"{k:02}.png")
    return root


TWO = {"train": {"cat": 3, "dog": 4}, "test": {"cat": 2, "dog": 1}}


def load_folder(root, **options):
    return datasets.load(settings("image_folder", root=str(root), **options))


def refused_folder(root, **options):
    return refusal("image_folder", root=None if root is None else str(root), **options)


def test_class_names_are_read_without_torch(tmp_path):
    make_folder(tmp_path, {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1, "dog": 1}})
    program = (
        "import sys; from clrun.data.datasets import class_names; from clrun.data.folder_layouts import find\n"
        f"print(class_names('digits'), list(find({str(tmp_path)!r}, None).classes))\n"
        "assert not {'torch', 'torchvision', 'sklearn', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=CONF.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("] [")[1].strip() == "'cat', 'dog']"


def test_train_and_test_folders(tmp_path):
    images = load_folder(make_folder(tmp_path, TWO), size=16, pad=1)
    assert images.x.shape == (10, 3, 18, 18) and images.x.dtype == torch.uint8
    assert images.train == 7 and images.classes == ("cat", "dog")
    assert images.y.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 1]
    last = decoding.decode(str(tmp_path / "test" / "dog" / "00.png"), 16)
    assert np.array_equal(images.x[-1, :, 1:-1, 1:-1].numpy(), last)


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path):
    make_folder(tmp_path, {"10": 2, "9": 2, "1": 2})
    assert load_folder(tmp_path, size=4, test_fraction=0.5).classes == ("1", "9", "10")


@pytest.mark.parametrize("below", ["", "train"])
def test_a_fraction_of_every_class_is_held_out(tmp_path, below):
    make_folder(tmp_path / below, {"cat": 10, "dog": 5})
    images, again = (load_folder(tmp_path, size=8, test_fraction=0.2) for _ in range(2))
    assert images.train == 12 and images.y[12:].tolist() == [0, 0, 1]
    assert torch.equal(images.x, again.x) and images.fingerprint == again.fingerprint
    for label, name in enumerate(images.classes):
        files = sorted((tmp_path / below / name).iterdir())
        expected = {decoding.decode(str(file), 8).tobytes() for file in files}
        assert {row.numpy().tobytes() for row in images.x[images.y == label]} == expected
    assert images.fingerprint != load_folder(tmp_path, size=8, test_fraction=0.4).fingerprint


def test_symbolic_links_are_followed(tmp_path):
    make_folder(tmp_path / "real", TWO)
    (tmp_path / "linked" / "train").mkdir(parents=True)
    (tmp_path / "linked" / "train" / "cat").symlink_to(tmp_path / "real" / "train" / "cat")
    (tmp_path / "linked" / "train" / "dog").mkdir()
    (tmp_path / "linked" / "train" / "dog" / "x.png").symlink_to(tmp_path / "real" / "train" / "dog" / "00.png")
    (tmp_path / "linked" / "test").symlink_to(tmp_path / "real" / "test")
    assert load_folder(tmp_path / "linked", size=8).train == 4


def test_hidden_files_are_passed_over_and_others_are_said(tmp_path, capsys):
    make_folder(tmp_path, TWO)
    plain = load_folder(tmp_path, size=8)
    assert "ignored" not in capsys.readouterr().err
    for clutter in (".DS_Store", "train/.git", "train/cat/Thumbs.db", "test/dog/._00.png", "train/desktop.ini"):
        (tmp_path / clutter).write_text("x")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    assert load_folder(tmp_path, size=8).fingerprint == plain.fingerprint
    assert "ignored" not in capsys.readouterr().err
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "train" / "dog" / "more").mkdir()
    (tmp_path / "val").mkdir()
    assert load_folder(tmp_path, size=8).fingerprint == plain.fingerprint
    said = capsys.readouterr().err
    ignored, unused = said.splitlines()
    assert "ignored 3 files and folders" in ignored
    assert unused.startswith(f"image_folder: {tmp_path / 'val'} is not used: validation=0.1")
    assert all(str(tmp_path / name) in said for name in ("val", "train/cat/notes.txt", "train/dog/more"))


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    assert "dataset.root=path/to/pictures" in refused_folder(None)
    assert f"dataset.root={tmp_path / 'no'} does not exist: name the folder" in refused_folder(tmp_path / "no")
    (tmp_path / "file").touch()
    assert "is not a folder: name the folder" in refused_folder(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "has no class folders: put your pictures" in refused_folder(tmp_path / "empty", test_fraction=0.2)


REFUSED = {
    "one class": ({"train": {"cat": 2}, "test": {"cat": 2}}, None, "only the class cat: put your pictures into one"),
    "no test": ({"cat": 2, "dog": 2}, None, "(classes: cat, dog): put some into {root}/test/<class>/ and the others"),
    "no test beside train": ({"train": {"cat": 2, "dog": 2}}, None, "hold some out with dataset.test_fraction=0.2"),
    "empty test": ({"train": {"cat": 2, "dog": 2}, "test": {}}, None, "has no test pictures"),
    "test only": ({"test": {"cat": 2, "dog": 2}}, None, "in test but none in train: put the training pictures into"),
    "not sorted": ({"train": 2, "test": 2}, 0.5, "sort them into one folder a class, train/<class>/ and test/<class>/"),
    "both": (TWO, 0.5, "leave dataset.test_fraction out, or name {root}/train as dataset.root"),
    "lacks in test": (
        {"train": {"cat": 1, "dog": 1, "eel": 1}, "test": {"cat": 1, "dog": 1}},
        None,
        "eel is a class in {root}/train but not in {root}/test: each class needs a folder in both",
    ),
    "lacks in train": (
        {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1, "dog": 1, "eel": 1, "fox": 1}},
        None,
        "eel, fox are classes in {root}/test but not in {root}/train",
    ),
    "empty class": (
        {"train": {"cat": 1, "dog": 0}, "test": TWO["test"]},
        None,
        "{root}/train/dog has no pictures: put",
    ),
    "none to test": (
        {"cat": 9, "dog": 2},
        0.2,
        "class dog has too few pictures to split: dataset.test_fraction=0.2 of 2",
    ),
    "none to train": ({"cat": 1, "dog": 9}, 0.6, "leaves none for training; add pictures to {root}/cat, or state"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_make_no_data_set_are_refused(case, tmp_path, cache_home):
    shape, fraction, words = REFUSED[case]
    make_folder(tmp_path, shape)
    assert words.format(root=tmp_path) in refused_folder(tmp_path, test_fraction=fraction)
    assert not cache_home.exists()


def truncated(path):
    path.with_suffix(".png").unlink()
    noise((200, 200)).save(path.with_suffix(".jpg"))
    data = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").write_bytes(data[: len(data) // 2])


def dangling(path):
    path.unlink()
    path.symlink_to("nothing")


BROKEN = {
    "zero bytes": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("this is no picture"),
    "truncated jpeg": truncated,
    "truncated png": lambda path: path.write_bytes(path.read_bytes()[:-2000]),
    "no file": dangling,
    "not finite": lambda path: Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(path, format="TIFF"),
    "negative": lambda path: Image.fromarray(np.full((9, 9), -1, np.int32)).save(path, format="TIFF"),
    "postscript": lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_picture_is_named(case, tmp_path, cache_home):
    make_folder(tmp_path, TWO)
    BROKEN[case](tmp_path / "train" / "dog" / "02.png")
    text = refused_folder(tmp_path)
    assert text.startswith(f"{tmp_path}/train/dog/02.") and "is a broken picture" in text and "remove it" in text
    assert "dataset.skip_broken=true" in text and not cache_home.exists()


def test_a_huge_picture_is_refused_by_pillows_limit(tmp_path, monkeypatch, recwarn):
    make_folder(tmp_path, TWO)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 48 - 1)
    load_folder(tmp_path, size=8)  # above the limit, Pillow only warns; it refuses above twice the limit
    assert not [warning for warning in recwarn if issubclass(warning.category, Image.DecompressionBombWarning)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 48 // 2 - 1)
    text = refused_folder(tmp_path, size=9)
    assert "10 pictures are broken" in text and "train/cat/00.png (it is too huge a picture" in text


def test_all_broken_pictures_are_named_or_left_out(tmp_path, capsys):
    root = make_folder(tmp_path / "pictures", {"train": {"cat": 20, "dog": 3}, "test": TWO["test"]})
    clean = make_folder(tmp_path / "clean", {"train": {"cat": 20, "dog": 3}, "test": TWO["test"]})
    for k in range(12):
        (root / "train" / "cat" / f"{k:02}.png").write_bytes(b"")
        (clean / "train" / "cat" / f"{k:02}.png").unlink()
    text = refused_folder(root)
    assert text.startswith("12 pictures are broken: ") and "and 2 more" in text
    assert all(f"cat/{k:02}.png (" in text for k in range(10)) and "cat/10.png" not in text
    capsys.readouterr()
    for _ in range(2):  # decoded, and from the cache
        left = load_folder(root, skip_broken=True)
        assert "12 broken pictures were left out" in capsys.readouterr().err
        assert len(left.x) == 14 and left.train == 11
        assert left.fingerprint == load_folder(clean).fingerprint
        assert torch.equal(left.x, load_folder(clean).x)
    assert "12 pictures are broken" in refused_folder(root)
    for k in range(12, 20):
        (root / "train" / "cat" / f"{k:02}.png").write_bytes(b"")
    assert "train/cat has no picture that can be read" in refused_folder(root, skip_broken=True)


def damaged_text(data):
    at = data.index(b"tEXt") + 6
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_is_read_and_one_without_rows_is_broken(progressive, tmp_path):
    noise((200, 200)).save(tmp_path / "a.jpg", progressive=progressive)
    data = (tmp_path / "a.jpg").read_bytes()
    whole = decoding.decode(str(tmp_path / "a.jpg"), 200)
    for cut in (1, 2):
        (tmp_path / "b.jpg").write_bytes(data[:-cut])
        assert np.array_equal(decoding.decode(str(tmp_path / "b.jpg"), 200), whole)
    for kept in (len(data) - 30, len(data) - 300, len(data) // 2):
        (tmp_path / "b.jpg").write_bytes(data[:kept])
        with pytest.raises(UsageError, match="broken picture"):
            decoding.decode(str(tmp_path / "b.jpg"), 200)


def test_a_png_with_damaged_metadata_is_read_and_one_without_rows_is_broken(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("about", "a picture")
    noise().save(tmp_path / "a.png", pnginfo=text)
    data = (tmp_path / "a.png").read_bytes()
    whole = decoding.decode(str(tmp_path / "a.png"), 40)
    for mended in (damaged_text(data), data[:-1], data[:-12]):
        (tmp_path / "b.png").write_bytes(mended)
        assert np.array_equal(decoding.decode(str(tmp_path / "b.png"), 40), whole)
    at = data.index(b"IDAT") + 1000
    for broken in (data[:at], data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]):
        (tmp_path / "b.png").write_bytes(broken)
        with pytest.raises(UsageError, match="broken picture"):
            decoding.decode(str(tmp_path / "b.png"), 40)


def test_damaged_notes_on_turning_leave_a_picture_as_it_is(tmp_path):
    noise((16, 16)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense", quality=95)
    assert decoding.decode(str(tmp_path / "a.jpg"), 16).shape == (3, 16, 16)


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "jp2", "tga", "dib", "pnm"])
def test_more_kinds_of_files_are_read(suffix, tmp_path):
    root = make_folder(tmp_path, TWO)
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "avif": "AVIF", "jp2": "JPEG2000", "tga": "TGA", "dib": "DIB", "pnm": "PPM"}
    Image.new("RGB", (9, 9), (90, 90, 90)).save(root / "train" / "cat" / f"x.{suffix}", kinds[suffix])
    images = load_folder(root, size=8)
    assert images.train == 8 and (images.x[3].float() - 90).abs().max() <= 2


def test_what_is_ignored_is_counted_by_suffix(tmp_path, capsys):
    root = make_folder(tmp_path, TWO)
    for name in ("a.heic", "b.heic", "c.txt", "d"):
        (root / "train" / "cat" / name).touch()
    load_folder(root)
    assert "ignored 4 files and folders" in (said := capsys.readouterr().err)
    assert "(2 .heic, 1 .txt, 1 without a suffix)" in said


def test_a_link_in_a_circle_is_no_class(tmp_path, capsys):
    root = make_folder(tmp_path, TWO)
    (root / "train" / "loop").symlink_to("loop")
    (root / "train" / "cat" / "loop.png").symlink_to("loop.png")
    assert "loop.png is a broken picture" in refused_folder(root)
    assert load_folder(root, skip_broken=True).classes == ("cat", "dog")


# The identity


def test_the_identity_follows_from_the_bytes_of_the_files(tmp_path):
    first = load_folder(make_folder(tmp_path / "a", TWO))
    assert load_folder(make_folder(tmp_path / "b", TWO)).fingerprint == first.fingerprint, "another place"
    (tmp_path / "b" / "train" / "cat" / "02.png").rename(tmp_path / "b" / "train" / "cat" / "09.png")
    assert load_folder(tmp_path / "b").fingerprint == first.fingerprint, "another name in the same order"
    file = tmp_path / "a" / "test" / "dog" / "00.png"
    Image.open(file).save(file, compress_level=0)
    assert load_folder(tmp_path / "a").fingerprint != first.fingerprint, "other bytes of the same pixels"
    assert load_folder(tmp_path / "b", size=16).fingerprint != first.fingerprint


def test_a_file_that_keeps_its_size_and_time_is_noticed(tmp_path, cache_home):
    root = make_folder(tmp_path, {part: {"cat": 1, "dog": 1} for part in ("train", "test")})
    file = root / "train" / "cat" / "00.ppm"
    noise().save(file)
    os.utime(file, (1, 1))
    before = load_folder(root, size=40)
    noise(seed=77).save(file)
    os.utime(file, (1, 1))
    assert load_folder(root, size=40).fingerprint != before.fingerprint


def test_a_digest_is_remembered_until_a_file_changes(tmp_path):
    file, cache = tmp_path / "a", tmp_path / "cache.npz"
    file.write_bytes(b"one")
    old = FileState(3, 10**9, 10**9, 5)
    first = digests([str(file)], [old], cache)
    first.remember(cache)
    assert first.rows.tobytes() == digest_of(b"one")
    file.write_bytes(b"two")
    assert digests([str(file)], [old], cache).rows.tobytes() == digest_of(b"one"), "it was not read"
    for changed in (old._replace(modified=2), old._replace(changed=2), old._replace(inode=6), old._replace(bytes=4)):
        assert digests([str(file)], [changed], cache).rows.tobytes() == digest_of(b"two")
    other = digests([str(file), str(tmp_path / "none")], [old, old], cache)
    assert other.rows[0].tobytes() == digest_of(b"one") and not other.rows[1].any()
    just = old._replace(modified=time.time_ns())
    digests([str(file)], [just], cache).remember(cache)
    file.write_bytes(b"six")
    assert digests([str(file)], [just], cache).rows.tobytes() == digest_of(b"six"), "it may have changed at once"


def test_the_number_of_pictures_and_their_digest_are_recorded(tmp_path):
    record = load_folder(make_folder(tmp_path, TWO)).folder
    assert [(one.part, one.name, one.pictures) for one in record.classes] == [
        ("train", "cat", 3), ("train", "dog", 4), ("test", "cat", 2), ("test", "dog", 1),
    ]  # fmt: skip
    assert record.pillow_version == Image.__version__ and record.whites is None


# More than 8 bits


def deep_folder(root, values, dtype, suffix="png"):
    """A folder in which every picture of a class has one value."""
    for part in ("train", "test"):
        for name, value in values[part].items():
            (root / part / name).mkdir(parents=True)
            Image.fromarray(np.full((9, 9), value, dtype)).save(root / part / name / f"a.{suffix}")
    return root


TWELVE_BITS = {"train": {"dark": 1000, "light": 4095}, "test": {"dark": 2047, "light": 4000}}


@pytest.mark.parametrize(
    ("dtype", "suffix"), [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif"), (np.float32, "tif")]
)
def test_twelve_bits_use_all_grey_levels(dtype, suffix, tmp_path, capsys):
    root = deep_folder(tmp_path, TWELVE_BITS, dtype, suffix)
    for _ in range(2):
        assert load_folder(root, size=4).x[:, 0, 0, 0].tolist() == [62, 255, 127, 249]
        assert "4 pictures have more than 8 bits: 0 becomes black and 4095 white" in capsys.readouterr().err
    assert load_folder(root, size=4, white=8190.0).x[:, 0, 0, 0].tolist() == [31, 128, 64, 125]
    assert "8190 white, typed" in capsys.readouterr().err


def test_floating_point_up_to_one_is_white_at_one(tmp_path):
    root = deep_folder(tmp_path, {"train": {"a": 0.2, "b": 0.6}, "test": {"a": 0.4, "b": 2.0}}, np.float32, "tif")
    assert load_folder(root, size=4).x[:, 0, 0, 0].tolist() == [51, 153, 102, 255]


def test_test_pictures_do_not_say_what_is_white(tmp_path):
    lists = {"train": {"dark": 100, "light": 900}, "test": {"dark": 200, "light": 60000}}
    assert load_folder(deep_folder(tmp_path, lists, np.uint16), size=4).x[:2, 0, 0, 0].tolist() == [25, 224]


def test_pictures_of_8_bits_beside_deep_ones_stay_as_they_are(tmp_path, capsys):
    root = make_folder(tmp_path, TWO)
    plain = load_folder(root, size=40).x[1:]
    assert "more than 8 bits" not in capsys.readouterr().err
    Image.fromarray(np.full((40, 48), 4095, np.uint16)).save(root / "train" / "cat" / "00.png")
    images = load_folder(root, size=40)
    assert torch.equal(images.x[1:], plain) and (images.x[0] == 255).all()
    assert images.folder.whites.whole == 4095


# Names of folders


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing"), ("TRAINING", "test")])
def test_the_parts_are_found_in_any_case(train, test, tmp_path):
    images = load_folder(make_folder(tmp_path, {train: TWO["train"], test: TWO["test"]}), size=8)
    assert images.classes == ("cat", "dog") and images.train == 7


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
def test_a_folder_for_validation_is_explained(name, tmp_path, capsys):
    root = make_folder(tmp_path, {"Train": TWO["train"], name: TWO["test"]})
    text = refused_folder(root)
    assert f"has the folder {name}, but no test" in text and "rename it to test" in text and "validation=0.1" in text
    (root / name).rename(root / "test")
    assert load_folder(root, size=8).train == 7
    make_folder(root, {name: TWO["test"]})
    capsys.readouterr()
    load_folder(root, size=8)
    assert f"{root / name} is not used" in capsys.readouterr().err


def test_two_folders_for_one_part_are_refused(tmp_path):
    make_folder(tmp_path, TWO | {"training": TWO["train"]})
    assert "train and training, which are both for training pictures" in refused_folder(tmp_path)


def test_pictures_in_the_parts_themselves_are_refused_in_any_case(tmp_path):
    make_folder(tmp_path, {"Train": 2, "Val": 2})
    assert "pictures in Train, Val themselves" in refused_folder(tmp_path, test_fraction=0.5)


def test_class_names_that_look_alike(tmp_path):
    composed, apart = "M\u00fcller", "Mu\u0308ller"
    root = make_folder(tmp_path / "a", {"train": {composed: 2, "dog": 2}, "test": {apart: 1, "dog": 1}})
    images = load_folder(root, size=8)
    assert composed in images.classes and images.train == 4
    make_folder(root, {"train": {apart: 1}})
    assert "look alike, " in (text := refused_folder(root)) and "\\xfc" in text and "\\u0308" in text
    root = make_folder(tmp_path / "b", {"train": {"cat": 2, "dog": 2}, "test": {"cat ": 1, "dog": 1}})
    text = refused_folder(root)
    assert "'cat'" in text and "'cat '" in text and "cannot be seen" in text
    root = make_folder(tmp_path / "c", {"train": {"a b": 2, "dog": 2}, "test": {"a\u00a0b": 1, "dog": 1}})
    assert "'a b'" in (text := refused_folder(root)) and "'a\\xa0b'" in text


# One picture


def decoded(tmp_path, image, size=4, name="picture.png", **options):
    image.save(tmp_path / name, **options)
    return decoding.decode(str(tmp_path / name), size)


def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    wide = np.zeros((24, 72, 3), np.uint8)
    wide[:, 24:48] = (10, 20, 30)
    for pixels in (wide, wide.transpose(1, 0, 2)):
        x = decoded(tmp_path, Image.fromarray(pixels), size=8)
        assert x.shape == (3, 8, 8)
        inner = x[:, 1:-1, 1:-1]  # the filter reaches a little beyond the cut
        assert (inner == np.array([10, 20, 30])[:, None, None]).all()


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path):
    image = noise((16, 16))
    assert np.array_equal(decoded(tmp_path, image, size=16), np.asarray(image).transpose(2, 0, 1))


def test_modes_become_rgb(tmp_path):
    def colour(image, **options):
        x = decoded(tmp_path, image, **options)
        assert (x == x[:, :1, :1]).all()
        return x[:, 0, 0].tolist()

    assert colour(Image.new("L", (9, 9), 77)) == [77] * 3
    assert colour(Image.new("1", (9, 9), 1)) == [255] * 3
    assert colour(Image.fromarray(np.full((9, 9), 2047, np.uint16))) == [255] * 3  # 11 bits
    assert colour(Image.new("RGBA", (9, 9), (255, 0, 0, 0))) == [255] * 3  # transparent: white
    assert colour(Image.new("RGBA", (9, 9), (255, 0, 0, 255))) == [255, 0, 0]
    assert colour(Image.new("LA", (9, 9), (0, 0))) == [255] * 3
    assert colour(Image.new("RGB", (9, 9), (1, 2, 3)).quantize(4)) == [1, 2, 3]
    assert colour(Image.new("RGB", (9, 9), (1, 2, 3)).quantize(4), transparency=0) == [255] * 3
    assert colour(Image.new("CMYK", (9, 9), (0, 0, 0, 255)), name="picture.tif") == [0] * 3


def test_exif_turns_a_picture_upright(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    x = decoded(tmp_path, Image.fromarray(pixels), name="picture.jpg", exif=exif, quality=95)
    assert x[:, 0].max() < 10 and x[:, -1].min() > 245


def test_a_large_jpeg_keeps_its_look(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 255, 512).astype(np.uint8)[None, :, None], (512, 512, 3))
    x = decoded(tmp_path, Image.fromarray(np.ascontiguousarray(ramp)), size=16, name="picture.jpg", quality=95)
    expected = ramp.reshape(16, 32, 16, 32, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(x - expected)[:, :, 1:-1].max() < 3


# The cache


@pytest.fixture
def opened(monkeypatch):
    """The paths of the pictures that were opened."""
    paths, open_image = [], Image.open

    def counted(file, **options):
        paths.append(file)
        return open_image(file, **options)

    monkeypatch.setattr(Image, "open", counted)
    return paths


def test_the_second_load_decodes_nothing(tmp_path, opened, cache_home, capsys):
    make_folder(tmp_path, TWO)
    first = load_folder(tmp_path)
    assert len(opened) == 10 and len(list((cache_home / "clrun" / "image_folder").iterdir())) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "decoding 10 pictures" in said
    second = load_folder(tmp_path)
    assert len(opened) == 10 and capsys.readouterr().err == ""
    assert torch.equal(first.x, second.x) and first.fingerprint == second.fingerprint


def test_other_pictures_or_another_size_are_decoded_again(tmp_path, opened):
    root = make_folder(tmp_path, TWO)
    load_folder(root)
    load_folder(root, size=8)
    assert len(opened) == 20
    os.utime(root / "test" / "dog" / "00.png", (1, 1))
    load_folder(root)
    assert len(opened) == 20, "the same bytes"
    noise(seed=9).save(root / "test" / "dog" / "01.png")
    assert len(load_folder(root).x) == 11 and len(opened) == 31
    (root / "test" / "dog" / "01.png").rename(root / "test" / "cat" / "09.png")
    assert load_folder(root).y[-4:].tolist() == [0, 0, 0, 1] and len(opened) == 42


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("tear", [lambda data: b"", lambda data: data[:-100], lambda data: data[:900], flipped])
def test_a_torn_cache_is_decoded_again(tear, tmp_path, opened, cache_home, capsys):
    make_folder(tmp_path, TWO)
    first = load_folder(tmp_path)
    (file,) = (cache_home / "clrun" / "image_folder").iterdir()
    file.write_bytes(tear(file.read_bytes()))
    assert torch.equal(load_folder(tmp_path).x, first.x) and len(opened) == 20
    assert f"{file} is torn" in capsys.readouterr().err
    load_folder(tmp_path)
    assert len(opened) == 20


class MakesFolder:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_cache_file_of_something_else_is_not_used(tmp_path, opened, cache_home):
    make_folder(tmp_path, TWO)
    first = load_folder(tmp_path)
    (file,) = (cache_home / "clrun" / "image_folder").iterdir()
    np.savez(file, x=np.array([MakesFolder(str(tmp_path / "unpickled"))], dtype=object))
    assert torch.equal(load_folder(tmp_path).x, first.x) and len(opened) == 20
    assert not (tmp_path / "unpickled").exists()
    np.savez(file, x=np.zeros((10, 3, 8, 8), np.uint8))
    assert torch.equal(load_folder(tmp_path).x, first.x) and len(opened) == 30


def test_a_named_data_dir_is_only_read(tmp_path, cache_home):
    """It may be shared, or on a disk that nobody may write to: the cache is in the user's own folder all the same."""
    make_folder(tmp_path / "pictures", TWO)
    (tmp_path / "data").mkdir()
    datasets.load(settings("image_folder", str(tmp_path / "data"), root=str(tmp_path / "pictures")))
    assert tree(tmp_path / "data") == [] and len(list((cache_home / "clrun" / "image_folder").iterdir())) == 1


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, cache_home, capsys):
    make_folder(tmp_path, TWO)
    cache_home.mkdir()
    (cache_home / "clrun").touch()
    assert len(load_folder(tmp_path).x) == 10
    assert "nothing cached" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_folders_that_may_not_be_read_are_refused(tmp_path):
    make_folder(tmp_path / "pictures", TWO)
    closed = tmp_path / "pictures" / "train" / "cat"
    closed.chmod(0)
    assert f"{closed} cannot be read (Permission denied)" in refused_folder(tmp_path / "pictures")
    closed.chmod(0o755)
    (closed / "00.png").chmod(0)
    assert f"{closed / '00.png'} is a broken picture (PermissionError" in refused_folder(tmp_path / "pictures")
