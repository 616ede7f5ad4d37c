"""Arrays and functions of the user's as data sets: what is read, what a run of them is, and what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import summaries
from safetensors.numpy import save_file
from test_bad_input import refused, written

from clrun.config.check_keys import last_of_each
from clrun.data import Parts, arrays
from clrun.data.check_parts import to_arrays
from clrun.runs import prepare
from clrun.system.errors import UsageError

pytestmark = pytest.mark.usefixtures("empty_folder")

SHORT = ("iterations=2", "model.widths=[8]", "device=cpu", "workers=1", "plots=false", "tasks=2")


def parts(shape=(5,), kind=np.float32, **changed) -> dict[str, np.ndarray]:
    """Four classes, of six training and two test samples each, as the arrays of a file."""
    random = np.random.default_rng(0)
    x = (random.normal(size=(32, *shape)) * 50 + 128).clip(0, 255).astype(kind)
    y = np.arange(32) % 4
    return {"x_train": x[:24], "y_train": y[:24], "x_test": x[24:], "y_test": y[24:]} | changed


def write(found, path="my.npz") -> str:
    """Write arrays to a file, and return what names it."""
    if path.endswith(".npz"):
        np.savez(path, **found)
    else:
        metadata = {"names": json.dumps(found.pop("names").tolist())} if "names" in found else None
        save_file(found, path, metadata)
    return f"dataset.file={path}"


NAMES = np.array(["walk", "run", "sit", "lie"])


@pytest.mark.parametrize("path", ["my.npz", "my.safetensors"])
@pytest.mark.parametrize(
    "shape, kind, block",
    [
        ((5,), np.float32, ((5,), torch.float32)),
        ((3, 20), np.float64, ((3, 20), torch.float32)),
        ((7,), np.int64, ((7,), torch.float32)),
        ((7,), np.uint8, ((7,), torch.float32)),
        ((8, 9), np.uint8, ((1, 8, 9), torch.uint8)),
        ((3, 8, 9), np.uint8, ((3, 8, 9), torch.uint8)),
        ((2, 6, 6), np.float16, ((2, 6, 6), torch.float32)),
    ],
)
def test_arrays_of_any_shape(settings_of, path, shape, kind, block):
    found = parts(shape, kind, names=NAMES)
    loaded = prepare.prepare(settings_of("dataset=arrays", write(dict(found), path), *SHORT)).images
    assert (loaded.shape, loaded.x.dtype) == block
    both = np.concatenate([found["x_train"], found["x_test"]])
    assert np.array_equal(loaded.x.numpy().reshape(both.shape), both.astype(loaded.x.numpy().dtype))
    assert loaded.y.tolist() == [*found["y_train"], *found["y_test"]] and loaded.train == 24
    assert loaded.classes == tuple(NAMES)


@pytest.mark.parametrize("numbers", [True, False])
def test_tasks_and_class_numbers(numbers):
    task = np.arange(24) // 4 % 2
    given = {"task_train": task, "task_test": task[:8]}
    if not numbers:
        given = {name: np.array(["lab", "field"])[v] for name, v in given.items()}
    made = to_arrays(Parts(**parts(**given)), "here")
    assert made.domains == (("0", "1") if numbers else ("field", "lab")) and made.classes == ("0", "1", "2", "3")
    both = [*given["task_train"].tolist(), *given["task_test"].tolist()]
    assert [made.domains[k] for k in made.domain] == list(map(str, both))


def test_a_run_is_known_by_its_numbers_and_not_by_its_file(clrun, prepared_of):
    typed = ("dataset=arrays", write(parts(names=NAMES)), *SHORT, "scenario=class")
    code, _, err = clrun(*typed, "split.classes=[[walk,run],[2,3]]")
    assert code == 0, err
    (summary,) = summaries()
    first = prepared_of(*typed)
    Path("my.npz").rename("other.npz")
    assert prepared_of(*typed[:1], "dataset.file=other.npz", *typed[2:]).id == first.id
    by_name, by_number = (
        prepared_of(*typed[:1], "dataset.file=other.npz", *typed[2:], f"split.classes={lists}")
        for lists in ("[[walk,run],[sit,lie]]", "[[0,1],[2,3]]")
    )
    assert by_name.id == by_number.id == summary.parent.name[-10:] != first.id
    write(parts(names=NAMES, x_test=parts()["x_test"] + 1), "other.npz")
    assert prepared_of(*typed[:1], "dataset.file=other.npz", *typed[2:]).id != first.id


def test_what_is_given_may_be_lists_and_tensors():
    made = to_arrays(Parts(torch.eye(4), [0, 1, 0, 1], [[0, 0, 0, 1.0]] * 2, torch.tensor([1, 0])), "here")
    assert made.x.shape == (6, 4) and made.y.tolist() == [0, 1, 0, 1, 1, 0]


# ---------------------------------------------------------------- domains

PLACES = np.array(["hill", "sea", "lab"])


def with_places(n=96) -> dict[str, np.ndarray]:
    """Two classes in three places, in every part."""
    random, y, place = np.random.default_rng(0), np.arange(n) % 2, np.arange(n) // 2 % 3
    x = random.normal(size=(n, 5)) + y[:, None] + 2 * place[:, None]
    part = {"x": x.astype(np.float32), "y": y, "task": PLACES[place]}
    return {f"{name}_{which}": v for name, v in part.items() for which in ("train", "test")}


ONE_BUDGET = tuple(text for text in SHORT if text != "tasks=2")


@pytest.mark.parametrize("scenario, outputs", [("domain", 2), ("task", 6), ("class", 6)])
def test_each_task_is_a_domain(prepared_of, scenario, outputs):
    typed = ("dataset=arrays", write(with_places()), "split=domains", f"scenario={scenario}", *ONE_BUDGET)
    run = prepared_of(*typed)
    assert run.settings["tasks"] == 3 and len(run.stream.names) == outputs
    for pools, start in ((run.stream.train, 0), (run.stream.test, 96)):
        places = [{str(with_places()["task_train"][i - start]) for i in pool.tolist()} for pool in pools]
        assert places == [{"hill"}, {"lab"}, {"sea"}]  # sorted by name
    held = prepared_of(*typed, "validation=0.5").stream
    assert all(len(train) + len(out) == 32 for train, out in zip(held.train, held.validation, strict=True))
    assert run.id == prepared_of(*typed, "tasks=3").id == prepared_of(*typed, "first_tasks=3").id
    assert len(prepared_of(*typed, "first_tasks=2").stream.train) == 2
    drawn = [prepared_of(*typed, "split.order=seed", f"seed={seed}").stream.train[0][0].item() for seed in range(9)]
    assert (
        len(set(drawn)) == 3
        and drawn[4] == prepared_of(*typed, "split.order=seed", "split.seed=4", "seed=1").stream.train[0][0].item()
    )


def test_a_run_over_domains(clrun):
    typed = ("dataset=arrays", write(with_places()), "split=domains", "scenario=domain", *ONE_BUDGET, "strategy=er")
    code, _, err = clrun(*typed)
    assert code == 0, err
    assert len(list(Path("outputs").glob("runs/er/arrays-domains-domain-3tasks-*/summary.csv"))) == 1


@pytest.mark.parametrize(
    "found, typed, said",
    [
        (parts(), (), "split=domains: dataset=arrays states no domains; give the domain of each sample"),
        (with_places(), ("tasks=2",), "tasks=2: the data set has 3 domains, and each is a task; leave tasks out"),
        (with_places(), ("tasks=9",), "or type first_tasks=3"),
        (with_places(), ("first_tasks=4",), "first_tasks=4: the stream has 3 tasks"),
        (
            with_places() | {"y_test": np.where(np.arange(96) // 2 % 3 == 1, 0, np.arange(96) % 2)},
            (),
            "split=domains: domain sea has no test sample of class 1",
        ),
    ],
)
def test_wrong_domains(clrun, found, typed, said):
    typed = ("dataset=arrays", write(found), "split=domains", *ONE_BUDGET, *typed)
    before = written()
    refused(clrun(*typed), said, before)


# ---------------------------------------------------------------- wrong files


def changed(name, change) -> Callable[[], str]:
    """Return a function that writes a file in which one array is changed."""
    return lambda: write(parts(**{name: change(parts()[name])}))


def holding(**given) -> Callable[[], str]:
    return lambda: write(parts(**given))


def without(name) -> Callable[[], str]:
    return lambda: write({key: v for key, v in parts().items() if key != name})


def text(content: bytes, path: str = "my.npz") -> Callable[[], str]:
    """Return a function that writes bytes into a file."""

    def made() -> str:
        Path(path).write_bytes(content)
        return f"dataset.file={path}"

    return made


def folder() -> str:
    Path("my.npz").mkdir()
    return "dataset.file=my.npz"


def cut() -> str:
    typed = write(parts())
    Path("my.npz").write_bytes(Path("my.npz").read_bytes()[:-200])
    return typed


def at(place, value):
    def change(array):
        array = array.copy()
        array[place] = value
        return array

    return change


RAGGED = np.array([[1, 2], [3]], dtype=object)

WRONG_FILES = {
    "none named": (lambda: "", "dataset=arrays needs your file: dataset.file=my.npz"),
    "absent": (lambda: "dataset.file=no.npz", "dataset.file=no.npz does not exist; name your file"),
    "a folder": (folder, "dataset.file=my.npz is a folder; name a file in it"),
    "another kind": (text(b"1,2", "my.csv"), "ends neither in .npz nor in .safetensors"),
    "empty": (text(b""), "the file is damaged or cut (it is no .npz file); write it again"),
    "text": (text(b"x_train = 1"), "the file is damaged or cut"),
    "cut": (cut, "the file is damaged or cut"),
    "empty safetensors": (text(b"", "my.safetensors"), "the file cannot be read"),
    "text as safetensors": (text(b"x_train = 1, and more", "my.safetensors"), "the file cannot be read"),
    "no test": (without("x_test"), "x_test is not in the file, which holds x_train, y_train, y_test"),
    "misspelt": (holding(task_tran=np.zeros(24)), "task_tran in the file means nothing; leave it out, or rename"),
    "objects": (holding(x_train=RAGGED), "holds Python objects, which are never unpickled"),
    "words": (holding(x_train=np.full((24, 5), "a")), "x_train holds text; give an array of numbers"),
    "complex": (holding(x_test=np.ones((8, 5), complex)), "x_test holds complex numbers"),
    "one axis": (changed("x_train", lambda x: x[:, 0]), "x_train has the shape (24,), but the first axis must count"),
    "no samples": (changed("x_test", lambda x: x[:0]), "x_test has the shape (0, 5), in which there is no number"),
    "other widths": (changed("x_test", lambda x: x[:, :4]), "has the shape (5,) in x_train and (4,) in x_test"),
    "other kinds": (changed("x_test", lambda x: x.astype(np.uint8)), "x_train is float32 and x_test is uint8"),
    "NaN": (changed("x_train", at((3, 2), np.nan)), "x_train[3, 2] is nan, which is no finite number"),
    "inf": (changed("x_test", at((1, 0), -np.inf)), "x_test[1, 0] is -inf, which is no finite number"),
    "too large": (holding(x_train=np.full((24, 5), 1e200)), "x_train[0, 0] is 1e+200, which is no finite number"),
    "channels last": (
        lambda: write(parts((8, 8, 3), np.uint8)),
        "pictures whose channels come last; give them as (n, channels, height, width)",
    ),
    "mixed lengths": (changed("y_train", lambda y: y[:-1]), "y_train has 23 labels for 24 samples"),
    "float labels": (changed("y_train", lambda y: y.astype(float)), "y_train holds float64 in place of whole numbers"),
    "text labels": (holding(y_train=np.full(24, "cat")), "in place of whole numbers from 0; give np.unique(labels"),
    "one-hot labels": (changed("y_test", lambda y: np.eye(4)[y]), "one label a sample; give y_test.argmax(1)"),
    "negative label": (changed("y_test", at(3, -1)), "y_test[3] is -1; number the classes from 0"),
    "huge label": (changed("y_train", at(3, 10**9)), "y_train has the label 1000000000; number the classes from 0"),
    "one class": (holding(y_train=np.zeros(24, int), y_test=np.zeros(8, int)), "there is one class only"),
    "a class untested": (changed("y_test", at(slice(None), 0)), "y_test has no test sample of class 1 (label 1)"),
    "a gap": (changed("y_train", lambda y: np.where(y == 3, 4, y)), "y_train has no training sample of class 3"),
    "few names": (holding(names=NAMES[:3]), "there is the label 3 but names has 3 entries, 0 to 2; add names"),
    "a name twice": (holding(names=np.array(["a", "b", "a", "c"])), "names has a twice"),
    "an empty name": (holding(names=np.array(["a", "b", "", "c"])), "names has '', which cannot be printed"),
    "names that are floats": (holding(names=np.ones(4)), "names must be a list of texts"),
    "one task array": (holding(task_train=np.zeros(24, int)), "task_test is not there"),
    "short tasks": (holding(task_train=np.zeros(9, int), task_test=np.zeros(8, int)), "has the shape (9,) of int64"),
    "a task untested": (
        holding(task_train=np.arange(24) % 2, task_test=np.zeros(8, int)),
        "task 1 has samples in one part alone",
    ),
}


@pytest.mark.parametrize("make, said", WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_files(clrun, make, said):
    typed = make()
    before = written()
    refused(clrun("dataset=arrays", *filter(None, [typed]), *SHORT), said, before)


@pytest.mark.parametrize(
    "typed, said",
    [
        ("split.classes=[[0,1],[2,9]]", "split.classes: there is no class 9"),
        ("tasks=3", "tasks=3: 4 classes do not divide into 3 equal tasks"),
        ("dataset.pad=1", "dataset.pad=1 needs pictures"),
        ("split=rotated", "split=rotated needs pictures"),
        ("augment=crop_flip", "augment=crop_flip needs pictures"),
        ("model=cnn", "model=cnn needs pictures"),
    ],
)
def test_keys_that_do_not_fit_the_arrays(clrun, typed, said):
    file = write(parts())
    before = written()
    small = [text for text in SHORT if not (typed.startswith("model") and text.startswith("model"))]
    refused(clrun(*last_of_each(["dataset=arrays", file, *small, typed])), said, before)


def test_a_damaged_file_in_python():
    with pytest.raises(UsageError, match="does not exist"):
        arrays.read("no.npz")


# ---------------------------------------------------------------- a function of the user's

YAML = """
name: mine
about: waves of two kinds
_target_: waves_of_the_user.load
epochs: 3
knobs:
  count: {default: 24, type: int, min: 1, about: waves of a part}
  normalize: {default: true, type: bool, about: as for every data set}
"""
CODE = """
import numpy as np
from clrun.data import Parts

def load(count):
    t, random = np.linspace(0, 6, 20), np.random.default_rng(0)
    y = np.arange(count) % 4
    x = np.sin(t * (1 + y[:, None])) + random.normal(size=(count, 20)) / 9
    return Parts(x, y, x[::-1], y[::-1], names=["a", "b", "c", "d"])
"""


@pytest.fixture
def mine():
    """mine(yaml, code) -> the arguments of a data set of the user's own."""

    def made(yaml=YAML, code=CODE):
        Path("my/dataset").mkdir(parents=True)
        Path("my/dataset/mine.yaml").write_text(yaml)
        Path("waves_of_the_user.py").write_text(code)
        return "--config-dir", "my", "dataset=mine", *SHORT

    yield made
    sys.modules.pop("waves_of_the_user", None)


def test_a_function_of_the_users(clrun, mine):
    typed = mine()
    code, _, err = clrun(*typed, "split.classes=[[a,b],[c,d]]", "scenario=class")
    assert code == 0, err
    code, _, err = clrun("-m", *typed, "dataset.count=24,32", "seed=0,1")
    assert code == 0, err
    assert len(summaries()) == 5  # another count is another run


LAST = "    return Parts(x, y, x[::-1], y[::-1], names"

WRONG_FUNCTIONS = {
    "no target": (
        YAML.replace("_target_: waves_of_the_user.load\n", ""),
        CODE,
        "the field _target_ is missing: write _target_",
    ),
    "no module in the target": (
        YAML.replace("waves_of_the_user.load", "load"),
        CODE,
        "_target_: String should match pattern",
    ),
    "another module": (
        YAML.replace("waves_of_the_user.load", "waves_of_nobody.load"),
        CODE,
        "there is no module waves_of_nobody",
    ),
    "another name": (YAML, CODE.replace("def load", "def other"), "waves_of_the_user.load, which is no function"),
    "a number": (YAML, CODE + "load = 3", "waves_of_the_user.load, which is no function"),
    "a module that is not there": (YAML, "import nothing_there\n" + CODE, "but there is no module nothing_there"),
    "a module that fails": (
        YAML,
        "1 / 0\n" + CODE,
        "waves_of_the_user.py, line 1, in <module>: 1 / 0: ZeroDivisionError",
    ),
    "no Python": (YAML, "def load(:\n", "waves_of_the_user.py, line 1: def load(:: SyntaxError"),
    "it fails": (
        YAML,
        CODE.replace("    t,", "    1 / 0\n    t,"),
        "waves_of_the_user.load has failed: ZeroDivisionError",
    ),
    "no arguments": (YAML, CODE.replace("load(count)", "load()"), "has failed: TypeError"),
    "another argument": (
        YAML,
        CODE.replace("load(count)", "load(count, noise)"),
        "missing 1 required positional argument",
    ),
    "an error of its own": (
        YAML,
        CODE.replace("    t,", "    raise ValueError('two\\nlines')\n    t,"),
        "ValueError: two lines",
    ),
    "a dictionary": (YAML, CODE.replace("return Parts", "return dict"), "has failed: TypeError"),
    "a tuple": (
        YAML,
        CODE.replace("return Parts(x, y, x[::-1]", "return (x, y, x[::-1]").replace("names=", ""),
        "returned tuple in place",
    ),
    "nothing": (YAML, CODE.replace("return Parts", "Parts"), "returned NoneType in place of clrun.data.Parts"),
    "a part missing": (YAML, CODE.replace(LAST, "    return Parts(x, y, x[::-1], names"), "has failed: TypeError"),
    "NaN": (YAML, CODE.replace("Parts(x, y,", "Parts(x * np.nan, y,"), "dataset=mine: x_train[0, 0] is nan"),
    "few names": (YAML, CODE.replace('"c", "d"', '"c"'), "dataset=mine: there is the label 3 but names has 3 entries"),
    "texts": (YAML, CODE.replace("Parts(x, y,", "Parts(x.astype(str), y,"), "dataset=mine: x_train holds text"),
    "other lengths": (
        YAML,
        CODE.replace("Parts(x, y,", "Parts(x, y[1:],"),
        "dataset=mine: y_train has 23 labels for 24 samples",
    ),
    "other shapes": (
        YAML,
        CODE.replace("Parts(x, y, x[::-1]", "Parts(x, y, x[:, 1:]"),
        "(20,) in x_train and (19,) in x_test",
    ),
    "ragged": (YAML, CODE.replace("Parts(x, y,", "Parts([[1.0], [1.0, 2.0]], y,"), "dataset=mine: x_train is no array"),
    "labels that are floats": (
        YAML,
        CODE.replace("Parts(x, y,", "Parts(x, y / 2,"),
        "y_train holds float64 in place of whole",
    ),
    "one class": (YAML, CODE.replace("% 4", "% 1").replace(', "b", "c", "d"', ""), "there is one class only"),
    "an untested class": (YAML, CODE.replace("y[::-1], names", "y * 0, names"), "y_test has no test sample of class b"),
    "domains of one part": (YAML, CODE.replace('"d"])', '"d"], task_train=y)'), "task_test is not there"),
    "another name in the yaml": (
        YAML.replace("name: mine", "name: digits"),
        CODE,
        "its name must be that of the file: write name: mine",
    ),
    "a key without a type": (
        YAML.replace("count:", "size: {default: 1}\n  count:"),
        CODE,
        "knobs.size.type is missing",
    ),
    "a default of another type": (
        YAML.replace("default: 24", "default: many"),
        CODE,
        "the default 'many' must be a whole number",
    ),
    "a field that is none": (YAML + "classes: 4\n", CODE, "there is no field classes"),
}


@pytest.mark.parametrize("yaml, code, said", WRONG_FUNCTIONS.values(), ids=WRONG_FUNCTIONS)
def test_wrong_functions(clrun, mine, yaml, code, said):
    typed = mine(yaml, code)
    sys.dont_write_bytecode, before = True, written()
    refused(clrun(*typed), said, before)


@pytest.mark.parametrize(
    "typed, said",
    [
        ("dataset.count=0", "dataset.count=0: must be a whole number, at least 1"),
        ("dataset.count=many", "dataset.count=many: must be a whole number"),
        ("dataset.counts=3", "did you mean dataset.count?"),
        ("dataset.pad=1", "dataset=mine takes no dataset.pad"),
        ("split.classes=[[a,b],[c,e]]", "split.classes: there is no class e"),
        ("split=domains", "split=domains: dataset=mine states no domains"),
        ("split=rotated", "split=rotated needs pictures"),
    ],
)
def test_keys_that_do_not_fit_a_function(clrun, mine, typed, said):
    given = mine()
    sys.dont_write_bytecode, before = True, written()
    refused(clrun(*[text for text in given if typed != "split=domains" or text != "tasks=2"], typed), said, before)


def test_a_split_cannot_be_added(clrun, mine):
    typed = mine()
    Path("my/split").mkdir()
    Path("my/split/odd.yaml").write_text("name: odd\nabout: x\n")
    before = written()
    refused(clrun(*typed), "a split cannot be added by a yaml", before)
