"""Bad input, typed or in files: one paragraph says what is wrong and what to type instead, the exit code is 2, there
is no traceback, and nothing is written."""

import math
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import MadeUpCards, summaries
from PIL import Image
from test_datasets import idx, write_idx
from test_image_folder import noise

from clrun.commands import run
from clrun.config import catalog, check_values, contradictions
from clrun.results.run_files import read_summary
from clrun.system.errors import UsageError

SHORT = ("iterations=2", "model.widths=[8]", "device=cpu", "workers=1")

pytestmark = pytest.mark.usefixtures("empty_folder")


def written() -> dict[Path, bytes | None]:
    """All that lies here and in the home beside it."""
    files = [*Path().rglob("*"), *Path("../home").rglob("*")]
    return {path: path.read_bytes() if path.is_file() else None for path in files}


def refused(answer: tuple[int, str, str], said: str, before: dict[Path, bytes | None]) -> None:
    """One paragraph, the right exit code, no traceback, nothing written."""
    code, out, err = answer
    assert said in err
    assert (code, out) == (2, "")
    assert err.startswith("clrun: ") and "Traceback" not in err and err.count("\n") == 1
    assert written() == before


# ---------------------------------------------------------------- what is typed

WRONG = {
    "strategy=ewk": "did you mean ewc?",
    "lamda=400": "did you mean lambda?",
    "+lamda=400": "did you mean lambda?",
    "++lamda=400": "did you mean lambda?",
    "+foo=3": "no such key",
    "widths=[10]": "did you mean model.widths?",
    "optimizer.lr=0.1": "did you mean lr?",
    "lambda=abc": "must be a finite number, at least 0; e.g. lambda=400",
    "lambda=-1": "must be a finite number, at least 0; e.g. lambda=400",
    "lambda=": "lambda=: must be a finite number",
    "lambda=nan": "must be a finite number",
    "lambda=inf": "must be a finite number",
    "lambda=1e999": "must be a finite number",
    "lambda=true": "must be a finite number",
    "strategy=finetune lambda=4": "strategy=finetune takes no lambda (",
    "model.width=5": "model=mlp takes no model.width (cnn, resnet18 do)",
    "tasks=3": "tasks=1, 2, 5 or 10, or deal unequally: 'split.sizes=[4,3,3]' or 'split.classes=[[0,1,2,3],[4,5,6],"
    "[7,8,9]]', which fixes the order, too.",
    "tasks=7 scenario=class": "or deal unequally: 'split.sizes=[2,2,2,1,1,1,1]' or 'split.classes=",
    "tasks=7": "type tasks=1, 2, 5 or 10.",
    "tasks=3 scenario=domain": "type tasks=1, 2, 5 or 10.",
    "split.blurry=10": "if 10 percent is meant, type split.blurry=0.1",
    "split.blurry=0.1 split.disjoint=50": "if 50 percent is meant, type split.disjoint=0.5",
    "split.blurry=100": "split.blurry=100: must be a finite number, above 0 and below 1",
    "tasks=0": "at least 1",
    "tasks=11": "tasks=1, 2, 5 or 10.",
    "epochs=0": "at least 1",
    "epochs=10.0": "type epochs=10",
    "epochs=3 iterations=5": "type one of them",
    "seed=-1": "at least 0",
    "seed=1.5": "whole number",
    "workers=0": "must be auto, or a whole number, at least 1; e.g. workers=auto",
    "checkpoint_every=-1": "at least 0",
    "checkpoint_every=nan": "must be a finite number",
    "keep_checkpoint=maybe": "must be true or false",
    "plots=some": "must be true or false",
    "seed=99999999999": "at most 4294967295",
    "model.widths=[0]": "each at least 1",
    "model.widths=[a]": "whole numbers",
    "threads=0": "at least 1",
    "evaluate_every=-5": "at least 0",
    "precision=half": "float32, tf32, bfloat16",
    "outputs=": "must be a path",
    "stack=half": "must be auto or off, or a whole number, at least 1",
    "lr=0": "above 0",
    "batch_size=0": "at least 1",
    "validation=1": "below 1",
    "tasks=10": "a task of the one class 0 has nothing to tell apart",
    "scenario=task split.classes=[[0,1],[2]]": "scenario=class",
    "scenario=classs": "did you mean class?",
    "split.classes=[[0,1],[1,2]]": "1 cannot be listed twice",
    "dataset=cifar10 scenario=class split.classes=[[cat],[unicorn]]": "no class unicorn",
    "dataset=cifar10 scenario=class split.classes=[[cats],[deer]]": "did you mean cat?",
    "data_dir=nowhere": "nowhere",
    "dataset=minst": "did you mean mnist?",
    "dataset=image_folder": "dataset.root",
    "ewc": "type strategy=ewc",
    "nothing": "type nothing=VALUE",
    "help": "did you mean clrun --help?",
    "-m lambda=1 10": "10: a setting is key=value, without spaces; type e.g. lambda=400",
    "-m seed=range(3": "a bracket is not closed",
    "-m outputs=a,b": "runs that differ in outputs alone are one run",
    "-m seed=0,1 --cfg job": "--cfg shows one run",
    "--cfg job --info": "type one of them",
    "--resolve": "type --cfg job --resolve",
    "--info nothing": "invalid choice",
    "-m strategy=glob(zz*)": "fits none of",
    "-m lambda=glob(*)": "list the values",
    "+hydra.sweeper.params.seed=5": "is typed by itself, with -m",
    "strategy=hat model.widths=[]": "type model.widths=[100,100]",
    "strategy=amn model.widths=[]": "type model.widths=[100,100]",
    "strategy=packnet model.widths=[]": "type model.widths=[100,100]",
    "model=resnet18 model.width=4": "type a larger one, such as model.width=20",
    "lambda=1,2": "clrun -m 'lambda=1,2'",
    "strategy=ewc,finetune": "clrun -m 'strategy=ewc,finetune'",
    "-m lambda=interval(0,1)": "'lambda=0,0.5,1', or 'lambda=range(0,1,0.25)'",
    "-m strategy=ewc,ewk": "did you mean ewc?",
    "-m strategy=finetune,joint lambda=1,2": "strategy=finetune,joint takes no lambda (",
    "seed=0..4": "typed with -m as 'seed=range(0,5)'",
    "-m strategy=ewc lambda=1,-1": "(In the job strategy=ewc lambda=-1; no job was started.)",
    "-m seed=range(0)": "has no values",
    "-m seed=0,1 lambda=range(5,1)": "lambda=range(5,1) has no values",
    "learning_rate=0.1": "did you mean lr?",
    "hidden=200": "did you mean model.widths?",
    "strategy=er memory_size=1e9": "memory_size=1000000000.0: must be a whole number",
    "strategy = ewc": "without spaces",
    "-m seed=0,1 tasks=3": "tasks=1, 2, 5 or 10",
    "outputs=a=b": "'outputs=\"a=b\"'",
    "--lambda=3": "without dashes",
    "--config-dir nowhere": "no such folder",
    "+experiment=cats": "no such experiment",
    "~strategy": "ewc, fdr, fecam, finetune",
    "strategy=null": "ewc, fdr, fecam, finetune",
    "strategy=[ewc,finetune]": "ewc, fdr, fecam, finetune",
    "lambda=${nothing}": "nothing",
    "lambda=???": "lambda",
    "hydra/launcher=none": "stacked",
    "hydra.nothing=1": "hydra.nothing",
    "experiment=split_mnist": "+experiment=split_mnist",
    "++strategy=ewk": "did you mean ewc?",
    "++lambda=-1": "must be a finite number, at least 0",
    "+strategy.knobs.lambda.default=3": "no such key",
    "strategy._target_=os.system": "no such key",
    "lambda='400'": "must be a finite number",
    "lambda=[1]": "must be a finite number",
    "lambda={a:1}": "must be a finite number",
    "lambda=1e39": "numbers end at 1e+38 here",
    "lambda=\u0664\u0660\u0660": "token recognition",
    "seed=0x10": "whole number",
    "lambda=1,,10": "a value is missing in the list",
    "seed=null,": "seed",
    "model.widths=[]]": "model.widths",
    "model.widths=100": "[100,100]",
    "batch_size=1e2": "type batch_size=100",
    "epochs=99999999999": "numbers end at 1e+09 here",
    "threads=100000": "at most 1024",
    "batch_size=1000000000": "GB of memory",
    "model.widths=[1000000,1000000]": "GB of memory",
    "dataset.pad=1000000": "GB of memory",
    "split=permuted tasks=1000000": "GB of memory",
    "strategy=er memory_size=1000000000": "GB of memory",
    "strategy=amn units=1000000000": "GB of memory",
    "drop_last=true batch_size=5000": "drop_last=false",
    "validation=0.0001": "without a validation sample",
    "model=resnet18 model.norm=batch batch_size=269 tasks=5 split.order=fixed": "batch norm cannot normalise",
    "strategy=hat model=resnet18": "type model=mlp or model=cnn",
    "strategy=hat scenario=class": "task_id_at_test=true",
    "outputs=/dev/null/x": "cannot be written: Not a directory",
    "outputs=/proc/nothing/here": "cannot be written",
    f"outputs={'x' * 300}": "longer than the 255 bytes",
    "data_dir=d\u00e4t\u00e4": "d\u00e4t\u00e4",
    "dataset=image_folder dataset.root=n\u00f6": "n\u00f6",
    "--config-dir": "expected one argument",
    "--cfg=nothing": "invalid choice",
    "=": "no such key",
    "=3": "no such key",
    "\u2014multirun": "key=value",
    "hydra/sweeper=nothing": "basic",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_typed_wrong(clrun, line):
    refused(clrun(*line.split()), WRONG[line], {})


KNOBS = [("root", "", key) for key in catalog.read().root] + [
    (group, name, key)
    for group, options in catalog.read().options.items()
    if group != catalog.CLUSTER  # of a sweep, not of a run: see test_cluster.py
    for name in options
    for key in catalog.read().knobs(group, name)
]
NUMBERS = ["", "abc", True, math.nan, math.inf, -math.inf, 1e300, -1e300, 10**400, [1], {"a": 1}]
WRONG_VALUES = {
    "float": NUMBERS,
    "int": [*NUMBERS, 1.5, 1e12],
    "count": [*NUMBERS, 1.5, "autom"],
    "bool": ["", "maybe", 1, 0.0, [True]],
    "choice": ["", "nothing", 1, True, math.nan, ["task"]],
    "device": ["", "nothing", "cuda:", "cuda:x", "cuda:-1", 1, True, math.nan, ["cuda:0"]],
    "path": ["", 1, True, math.nan, ["a"]],
    "str": ["", 1, True, math.nan, ["a"]],
    "mapping": ["", 1, "abc", ["a"], True, math.nan, {"a": math.inf}, {"a": [1, {"b": math.nan}]}],
    "names": ["", 1, "nothing", [], [""], [None], ["nothing"], [["a"]], True, math.nan, {"a": 1}],
    "texts": ["", 1, "abc", [1.5], [""], [None], [True], [["a"]], {"a": 1}],
    "floats": ["", 1, "abc", ["a"], [math.nan], [math.inf], [True], [[0.5]], {"a": 1}],
    "int_by_task": [*(v for v in NUMBERS if v != [1]), 1.5, [], ["a"], [1.5], [None], [[1]], [10**12]],
    "ints": ["", 1, "abc", ["a"], [1.5], [math.nan], [True], [10**12], {"a": 1}],
    "classes": ["", 1, "abc", [], [[]], ["a"], [1], [[1.5]], [[True]], [[["a"]]], [[""]]],
}


def beyond(said: catalog.KeySpec) -> list[float]:
    """Numbers just outside the range of a knob."""
    one = 1 if said.type in ("int", "ints", "int_by_task", "count") else 0.001
    found = [said.min - one] if said.min is not None else []
    found += [said.max + one] if said.max is not None else []
    found += [bound for bound in (said.above, said.below) if bound is not None]
    return [[value] for value in found] if said.type in ("ints", "floats") else found


@pytest.mark.parametrize(("group", "name", "key"), KNOBS)
def test_every_knob_refuses_what_is_out_of_range_or_of_another_type(group, name, key):
    """Empty, text, nan, infinite, huge, negative, a list, a mapping: the sentence names the knob and what it takes."""
    known = catalog.read()
    chosen = {**known.defaults, "strategy": "finetune", group: name}
    names = tuple(chosen.get(g) for g in catalog.GROUPS)
    spec = check_values.accepted(known, names)[key]
    wrong = [*WRONG_VALUES[spec.type], *beyond(spec)]
    assert len(wrong) >= 5
    for value in wrong:
        with pytest.raises(UsageError) as caught:
            check_values.validated({key: value}, known, names)
        text = str(caught.value)
        assert text.startswith(f"{key}=") and spec.expects() in text and "\n" not in text


# ---------------------------------------------------------------- what lies in files

STATED = "name: mine\nabout: mine\n_target_: mine_of_the_user.Mine\n"
MINE = "from clrun.strategies.finetune import Finetune\n\n\nclass Mine(Finetune):\n    pass\n"


def stated(text: str | bytes = STATED, name: str = "mine.yaml", code: str = MINE) -> Callable[[], str]:
    """A --config-dir with this yaml of a strategy, and its module; the command that takes it."""

    def make() -> str:
        Path("my/strategy").mkdir(parents=True)
        Path("my/strategy", name).write_bytes(text if isinstance(text, bytes) else text.encode())
        Path("mine_of_the_user.py").write_text(code)
        return "--config-dir my strategy=mine"

    return make


def with_neighbour(code: str) -> Callable[[], str]:
    """The same with a second module, which the first one imports."""

    def make() -> str:
        Path("half_of_the_user.py").write_text(code)
        return stated(code="import half_of_the_user\n" + MINE)()

    return make


def network_file(code: str) -> Callable[[], str]:
    """A module of a network; the command that takes it."""

    def make() -> str:
        Path("net_of_the_user.py").write_text(code)
        return "model=module model.target=net_of_the_user.Net"

    return make


def experiment(text: str) -> Callable[[], str]:
    def make() -> str:
        Path("my/experiment").mkdir(parents=True)
        Path("my/experiment/mine.yaml").write_text("# @package _global_\n" + text)
        return "--config-dir my +experiment=mine"

    return make


def file_in_place_of(key: str) -> Callable[[], str]:
    def make() -> str:
        Path("thing").write_text("mine")
        return f"{key}=thing"

    return make


def folder_named_yaml() -> str:
    Path("my/strategy/mine.yaml").mkdir(parents=True)
    return "--config-dir my strategy=ewc"


def mnist(file: str, change: Callable[[bytes], bytes | None]) -> Callable[[], str]:
    """A small MNIST of which one file is changed, or taken away."""

    def make() -> str:
        raw, _ = write_idx(Path("data"), "mnist")
        new = change((raw / file).read_bytes())
        (raw / file).unlink() if new is None else (raw / file).write_bytes(new)
        return "dataset=mnist data_dir=data"

    return make


PAIR = ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png")


def pictures(
    *paths: str,
    spoil: Callable[[Path], object] = lambda path: None,
    size: int = 8,
    more: str = "scenario=class tasks=1",
) -> Callable[[], str]:
    """Small pictures, the first of them spoilt."""

    def make() -> str:
        for i, name in enumerate(paths or PAIR):
            path = Path("pictures", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            noise((8, 8), seed=i).save(path)
        spoil(Path("pictures", (paths or PAIR)[0]))
        return f"dataset=image_folder dataset.root=pictures dataset.size={size} {more}"

    return make


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def values(numbers: np.ndarray) -> Callable[[Path], object]:
    """A picture of more than 8 bits, with these values."""
    return lambda path: Image.fromarray(numbers).save(path, format="TIFF")


def all_of_class_a(path: Path) -> None:
    """Spoil the pictures of the class in both parts."""
    for part in ("train", "test"):
        (path.parents[2] / part / "a" / path.name).write_bytes(b"")


def huge(path: Path) -> None:
    """A picture of 2^16 x 2^16 pixels in a few bytes: only its head is ever read."""
    head = b"P5 65536 65536 255\n"
    path.write_bytes(head + b"\0" * 64)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
BROKEN: dict[str, tuple[Callable[[], str], str]] = {
    "yaml: not yaml": (stated("name: ["), "is not valid YAML"),
    "yaml: empty": (stated(""), "must hold fields"),
    "yaml: a list": (stated("- a\n- b\n"), "must hold fields"),
    "yaml: not text": (stated(b"\xff\xfe\x00"), "is not valid YAML"),
    "yaml: a tag that would run code": (
        stated(STATED + "knobs: !!python/object/apply:os.mkdir [ran]\n"),
        "is not valid YAML",
    ),
    "yaml: a folder": (folder_named_yaml, "cannot be read: Is a directory"),
    "yaml: no target": (stated("name: mine\nabout: x\n"), "the field _target_ is missing"),
    "yaml: no such field": (stated(STATED + "wrans: {}\n"), "there is no field wrans"),
    "yaml: name of another": (stated(STATED.replace("name: mine", "name: yours")), "write name: mine"),
    "yaml: name that leads out": (stated(STATED.replace("name: mine", "name: ../../mine")), "name: "),
    "yaml: file that leads out": (stated(STATED.replace("name: mine", "name: '..'"), "...yaml"), "name: "),
    "yaml: name with a space": (stated(STATED.replace("name: mine", "name: my own"), "my own.yaml"), "name: "),
    "yaml: taken name": (stated(STATED.replace("name: mine", "name: ewc"), "ewc.yaml"), "a strategy ewc already"),
    "yaml: knob of all runs": (stated(STATED + "knobs: {lr: {default: 1, type: int, about: x}}\n"), "the knob lr"),
    "yaml: default out of range": (
        stated(STATED + "knobs: {k: {default: 2.0, type: float, max: 1, about: x}}\n"),
        "must be a finite number, at most 1",
    ),
    "yaml: knob that nothing reads": (
        stated(STATED + "knobs: {k: {default: 1, type: int, about: x}}\n"),
        "k must stand both in the yaml's knobs and in the class",
    ),
    "target: no class of that name": (stated(STATED.replace(".Mine", ".Yours")), "not a subclass of clrun.strategy"),
    "target: no such module": (stated(STATED.replace("mine_of", "nobody_of")), "there is no module nobody_of_the_user"),
    "target: no Strategy": (stated(STATED.replace("mine_of_the_user.Mine", "os.system")), "not a subclass of clrun"),
    "target: a network": (stated(STATED.replace("mine_of_the_user.Mine", "clrun.models.MLP")), "not a subclass of"),
    "target: an instance": (stated(code=MINE + "\n\nMine = Mine(None, None)\n"), "not a subclass of clrun.strategy"),
    "target: an expression": (stated(STATED.replace("mine_of_the_user", "__import__('os')")), "_target_: "),
    "target: a module with an error": (
        stated(code="import os\n\ndef Mine(:\n"),
        "mine_of_the_user.py, line 3: def Mine(:: SyntaxError: invalid syntax.",
    ),
    "target: a module that fails": (
        stated(code="def ratio():\n    return 1 / 0\n\nratio()\n"),
        "mine_of_the_user.py, line 2, in ratio: return 1 / 0: ZeroDivisionError: division by zero.",
    ),
    "target: a name that is not there": (
        stated(code="import os\nrate = lr * 2\n"),
        "mine_of_the_user.py, line 2, in <module>: rate = lr * 2: NameError: name 'lr' is not defined.",
    ),
    "target: an error of several lines": (
        stated(code="raise ValueError('one\\ntwo')\n"),
        "line 1, in <module>: raise ValueError('one\\ntwo'): ValueError: one two.",
    ),
    "target: a module that is not there": (
        stated(code="import nothing_there\n"),
        "mine_of_the_user.py, line 1, in <module>: import nothing_there); is it spelt right",
    ),
    "target: a file beside it with an error": (
        with_neighbour("def half(:\n"),
        "half_of_the_user.py, line 1: def half(:: SyntaxError: invalid syntax.",
    ),
    "model.target: a module that fails": (
        network_file("import torch\nwidth = widths[0]\n"),
        "net_of_the_user.py, line 2, in <module>: width = widths[0]: NameError: name 'widths' is not defined.",
    ),
    "experiment: no such key": (experiment("lamda: 3\n"), "lamda"),
    "experiment: out of range": (experiment("lambda: -3\n"), "lambda=-3: must be"),
    "experiment: another target": (experiment("strategy: {_target_: os.system}\n"), "is not a setting"),
    "experiment: not yaml": (experiment("lambda: [\n"), "a yaml file is not valid"),
    "config-dir: a file": (lambda: (Path("thing").touch(), "--config-dir thing")[1], "there is no such folder"),
    "outputs: a file": (file_in_place_of("outputs"), "is a file"),
    "data_dir: a file": (file_in_place_of("data_dir"), "is not a folder"),
    "dataset.root: a file": (
        lambda: f"dataset=image_folder {file_in_place_of('dataset.root')()}",
        "is not a folder",
    ),
    "idx: truncated": (mnist(IMAGES, lambda data: data[:-1]), "it is torn: 915 bytes instead of the 916"),
    "idx: empty": (mnist(IMAGES, lambda data: b""), "it is torn: 0 bytes"),
    "idx: too long": (mnist(LABELS, lambda data: data + b"\0"), "it is torn: 39 bytes instead of the 38"),
    "idx: another kind": (mnist(LABELS, lambda data: idx(np.zeros((2, 2, 2), np.uint8))), "it starts with 0x00000803"),
    "idx: still packed": (mnist(IMAGES, lambda data: b"\x1f\x8b" + data), "it starts with 0x1f8b"),
    "idx: text": (mnist(LABELS, lambda data: b"no labels at all"), "it starts with 0x6e6f206c"),
    "idx: fewer labels": (mnist(LABELS, lambda data: idx(np.arange(10, dtype=np.uint8))), "30 images but 10 labels"),
    "idx: a label out of range": (mnist(LABELS, lambda data: data[:-1] + b"\x0a"), "image 29 has the label 10"),
    "idx: a class without pictures": (
        mnist(LABELS, lambda data: data.replace(b"\x09", b"\x01")),
        "no training image of class 9",
    ),
    "idx: missing, and no network": (mnist(LABELS, lambda data: None), f"{LABELS} is not in data/MNIST/raw"),
    "picture: text": (pictures(spoil=lambda path: path.write_text("no picture")), "train/a/1.png is a broken picture"),
    "picture: zero bytes": (pictures(spoil=lambda path: path.write_bytes(b"")), "train/a/1.png is a broken picture"),
    "picture: cut short": (
        pictures(spoil=lambda path: path.write_bytes(path.read_bytes()[:-60])),
        "train/a/1.png is a broken picture",
    ),
    "picture: a link to nothing": (pictures(spoil=dangling), "train/a/1.png is a broken picture"),
    "picture: negative values": (
        pictures(spoil=values(np.full((9, 9), -1, np.int32))),
        "some of its values are negative",
    ),
    "picture: values that are not finite": (
        pictures(spoil=values(np.full((9, 9), np.nan, np.float32))),
        "some of its values are not finite",
    ),
    "pictures: two that are broken": (
        pictures(spoil=all_of_class_a),
        "2 pictures are broken: pictures/train/a/1.png (",
    ),
    "picture: huge": (
        pictures("train/a/1.pgm", *PAIR[1:], spoil=huge),
        "train/a/1.pgm is a broken picture (it is too huge a picture",
    ),
    "folder: one class": (pictures("train/a/1.png", "test/a/1.png"), "only the class a"),
    "folder: no test pictures": (pictures("a/1.png", "b/1.png"), "dataset.test_fraction=0.2"),
    "folder: no classes": (pictures("1.png", "2.png"), "no class folders"),
    "folder: a class of training alone": (pictures(*PAIR, "train/c/1.png"), "c is a class in pictures/train but not"),
    "folder: a class of testing alone": (pictures(*PAIR, "test/c/1.png"), "c is a class in pictures/test but not"),
    "folder: an empty class": (pictures(spoil=lambda path: path.unlink()), "pictures/train/a has no pictures"),
    "folder: a class name that cannot be printed": (pictures(*PAIR, "train/a\nb/1.png"), "'a\\nb': rename it"),
    "folder: a class of one picture to be split": (
        pictures("a/1.png", *(f"b/{i}.png" for i in range(9)), more="tasks=1 dataset.test_fraction=0.2"),
        "class a has too few pictures to split",
    ),
    "folder: pictures too large to hold": (
        pictures(size=1000000),
        "GB of memory",
    ),
}


@pytest.fixture
def no_network(monkeypatch):
    def unreachable(*_, **__):
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    yield
    sys.modules.pop("mine_of_the_user", None)


@pytest.mark.parametrize("case", BROKEN)
def test_what_lies_in_files(clrun, no_network, case):
    make, said = BROKEN[case]
    line = make()
    before = written()
    sys.dont_write_bytecode, kept = True, sys.dont_write_bytecode
    try:
        refused(clrun(*line.split()), said, before)
    finally:
        sys.dont_write_bytecode = kept
    assert not Path("ran").exists()


def test_there_are_sixty():
    assert len(WRONG) + len(BROKEN) >= 60 and len(BROKEN) >= 50


# ---------------------------------------------------------------- what could be taken for bad, and is not


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((9, 9), 25700, np.uint16)).save(path)


def cmyk(path: Path) -> None:
    path.unlink()
    Image.new("CMYK", (9, 9), (0, 0, 0, 255)).save(path.with_suffix(".jpg"))


FINE: dict[str, Callable[[], str]] = {
    "one picture a class": pictures(),
    "fewer pictures than the batch": pictures(more="scenario=class tasks=1 batch_size=1000"),
    "16 bits": pictures(spoil=sixteen_bits),
    "32 bits": pictures(spoil=values(np.full((9, 9), 70000, np.int32))),
    "fractions": pictures(spoil=values(np.zeros((9, 9), np.float32))),
    "cmyk": pictures(spoil=cmyk),
    "with alpha": pictures(spoil=lambda path: Image.new("RGBA", (9, 9), (255, 0, 0, 9)).save(path)),
    "black and white": pictures(spoil=lambda path: Image.new("1", (9, 9), 1).save(path)),
    "a single pixel": pictures(spoil=lambda path: Image.new("RGB", (1, 1)).save(path)),
    "classes with signs in their names": pictures(
        *(f"{part}/{name}/1.png" for part in ("train", "test") for name in ("a,b=c", "$\\frac{", "[red]\u00fc", '"q"'))
    ),
}


@pytest.mark.parametrize("case", FINE)
def test_what_is_unusual_but_right(clrun, case):
    code, out, err = clrun(*FINE[case]().split(), *SHORT)
    assert code == 0 and "average accuracy" in out and "Traceback" not in err
    (summary,) = summaries()
    assert read_summary(summary).iloc[0]["status"] == "done"


def test_folders_with_spaces_signs_and_other_alphabets(clrun):
    make = pictures()
    make()
    Path("pictures").rename("B\u00fcro 1=\u753b\u50cf")
    line = ("dataset=image_folder", 'dataset.root="B\u00fcro 1=\u753b\u50cf"', "dataset.size=8", "tasks=1", *SHORT)
    code, _, err = clrun(*line, 'outputs="\u0440\u0435\u0437 a=b"')
    assert code == 0, err
    assert len(summaries(outputs="\u0440\u0435\u0437 a=b")) == 1


def test_a_text_with_an_equals_sign_is_quoted_twice(clrun):
    refused(clrun("outputs=a b=c"), "'outputs=\"a b=c\"'", {})
    assert clrun('outputs="a b=c"', *SHORT)[0] == 0
    assert {path.name for path in Path().iterdir()} == {"a b=c"}


def test_cuda_is_refused_where_there_is_none(clrun, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(clrun("device=cuda"), "type device=cpu", {})


@pytest.mark.parametrize(
    "device, cards, said",
    [
        ("mps", 0, "not on the GPU of an Apple computer"),
        ("cuda:1", 0, "device=cuda:1: there is no CUDA device here"),
        (
            "cuda:7",
            2,
            "There is cuda:0 (NVIDIA Made Up 0), cuda:1 (NVIDIA Made Up 1); type one of them, or device=cuda",
        ),
        ("cuda:1", 1, "There is cuda:0 (NVIDIA Made Up 0); type one of them, or device=cuda."),
    ],
)
def test_a_device_that_is_not_there_is_refused(device, cards, said):
    with pytest.raises(UsageError) as refusal:
        contradictions.refuse_device({"device": device, "precision": "float32"}, MadeUpCards(*[0] * cards))
    assert said in str(refusal.value)


def test_cards_that_are_there_are_not_refused():
    refused_devices = []
    for device in ("cuda", "cuda:0", "cuda:1", "cuda:2"):
        try:
            contradictions.refuse_device({"device": device, "precision": "tf32"}, MadeUpCards(0, 0))
        except UsageError:
            refused_devices.append(device)
    assert refused_devices == ["cuda:2"]


def test_a_device_by_another_name_is_refused(clrun):
    refused(clrun("device=cuda:x"), "one card, such as cuda:1", {})
    refused(clrun("device=mps"), "type device=cpu", {})


def test_a_users_full_error_shows_the_traceback(clrun, monkeypatch, capfd):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["clrun", "lamda=400"])
    with pytest.raises(SystemExit) as caught:
        run.cli()
    assert caught.value.code == 2 and "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    "typed",
    ["hydra.run.dir=x", "hydra.sweep.dir=x", "hydra.output_subdir=x", "hydra.sweep.subdir=x", "hydra.job.chdir=true"],
)
@pytest.mark.parametrize("flags", [(), ("-m",)])
def test_where_hydra_writes_is_refused(clrun, typed, flags):
    code, _, err = clrun(*flags, typed)
    assert code == 2 and "outputs=FOLDER" in err and err.count("\n") == 1
    assert not list(Path().iterdir())
