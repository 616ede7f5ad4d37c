"""dataset=torch: a function of the user's that returns two map-style Datasets, read once; and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_bad_input import refused, written

from clrun.data import map_style, torch_function

pytestmark = pytest.mark.usefixtures("empty_folder")

SHORT = ("iterations=2", "model.widths=[8]", "device=cpu", "workers=1", "pictures=false", "tasks=2")

CODE = '''
import random
import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset


class Waves(Dataset):
    """Four classes of numbers, with noise."""

    classes = ["a", "b", "c", "d"]

    def __init__(self, count, noise=0.1):
        self.count, self.noise = count, noise

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        label = index % 4
        return self.x(index, label), label

    def x(self, index, label):
        return torch.full((5,), float(label)) + self.noise * torch.randn(5)


class Pictures(Waves):
    def x(self, index, label):
        pixels = np.random.default_rng(index).integers(0, 256, (8 + self.tall(index), 6, 3), np.uint8)
        return Image.fromarray(pixels)

    def tall(self, index):
        return 0


class Grey(Pictures):
    def x(self, index, label):
        return super().x(index, label).convert("L")


class Ragged(Pictures):
    def tall(self, index):
        return index % 3


class Sixteen(Pictures):
    def x(self, index, label):
        return Image.fromarray(np.full((8, 6), 1000 * label + index, np.uint16))


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(3), 0)])


class Endless(Dataset):
    def __getitem__(self, index):
        return torch.zeros(3), 0


def waves(count=24, noise=0.1):
    return Waves(count, noise), Waves(8, noise)


def kinds(kind, train=24):
    return globals()[kind](train), globals()[kind](8)


def tensors(dtype="float32"):
    x = torch.arange(24 * 5).view(24, 5).to(getattr(torch, dtype))
    return TensorDataset(x, torch.arange(24) % 4), TensorDataset(x[:8], torch.arange(8) % 4)


def drawn():
    """Numbers that are drawn anew at every reading, by three libraries."""
    pairs = [(np.array([random.random(), np.random.rand(), torch.rand(()).item()]), k % 4) for k in range(24)]
    return pairs, pairs[:8]


def parts():
    return Subset(Waves(40), range(24)), ConcatDataset([Waves(4), Waves(4)])


def with_item(item, place="train"):
    pairs = [(np.zeros(3) + k, k % 4) for k in range(8)]
    broken = [*pairs[:5], item, *pairs[6:]]
    return (broken, pairs) if place == "train" else (pairs, broken)


def odd(kind, place="train"):
    zeros = np.zeros(3)
    items = {
        "one": (zeros,), "three": (zeros, 1, 0), "dict": {"x": zeros, "y": 1}, "alone": zeros, "text": ("a picture", 1),
        "none": (None, 1), "ragged": ([[1, 2], [3]], 1), "objects": (np.array([{}, {}]), 1), "complex": (zeros * 1j, 1),
        "sparse": (torch.eye(3).to_sparse(), 1), "wide": (np.zeros(4), 1), "bytes": (np.zeros(3, np.uint8), 1),
        "nan": (zeros * np.nan, 1), "large": (zeros + 1e300, 1), "word label": (zeros, "cat"),
        "no label": (zeros, None),
        "float label": (zeros, 1.0), "one-hot label": (zeros, torch.eye(4)[1]), "negative label": (zeros, -1),
        "huge label": (zeros, 10**9), "absent label": (zeros, 9),
    }
    return with_item(items[kind], place)


class Named(Waves):
    def __init__(self, classes):
        super().__init__(8)
        self.classes = classes


def named(first, second=None):
    return Named(first), Named(second or first)


class Failing(Waves):
    def __getitem__(self, index):
        return 1 / (index - 7)


def failing():
    return Failing(12), Waves(8)


def raising():
    raise RuntimeError("the disk is not there")


def one():
    return Waves(8)


def three():
    return Waves(8), Waves(8), Waves(8)


def dictionaries():
    return {"0": 1}, {"0": 1}


def streams():
    return Stream(), Stream()


def endless():
    return Endless(), Endless()


def empty():
    return Waves(24), Waves(0)


def one_class():
    pairs = [(np.arange(3.0), 0)] * 6
    return pairs, pairs


def untested():
    pairs = [(np.arange(3.0) + k, k % 4) for k in range(8)]
    return pairs, pairs[:3]


number = 3
'''


@pytest.fixture
def mine():
    """The user's file, and its name again and again as a new module."""
    Path("data_of_the_user.py").write_text(CODE)
    yield "dataset=torch"
    sys.modules.pop("data_of_the_user", None)


def of(function: str, *args: str) -> tuple[str, ...]:
    return "dataset=torch", f"dataset.target=data_of_the_user.{function}", *args, *SHORT


@pytest.mark.parametrize(
    "typed, shape, kind",
    [
        (of("waves"), (5,), torch.float32),
        (of("kinds", "dataset.args={kind:Pictures}"), (3, 8, 6), torch.uint8),
        (of("kinds", "dataset.args={kind:Grey}"), (1, 8, 6), torch.uint8),
        (of("kinds", "dataset.args={kind:Ragged}", "dataset.size=12"), (3, 12, 12), torch.uint8),
        (of("kinds", "dataset.args={kind:Sixteen}"), (1, 8, 6), torch.float32),
        (of("tensors"), (5,), torch.float32),
        (of("tensors", "dataset.args={dtype:bfloat16}"), (5,), torch.float32),
        (of("tensors", "dataset.args={dtype:int64}"), (5,), torch.float32),
        (of("parts"), (5,), torch.float32),
    ],
)
def test_what_is_read(mine, prepared_of, typed, shape, kind):
    images = prepared_of(*typed).images
    assert (images.shape, images.x.dtype, images.train, len(images.x)) == (shape, kind, 24, 32)
    assert images.y.tolist() == [k % 4 for k in [*range(24), *range(8)]]
    assert images.classes == (("0", "1", "2", "3") if "tensors" in typed[1] else ("a", "b", "c", "d"))


def test_the_numbers_are_those_of_the_data_set(mine, prepared_of):
    import data_of_the_user as code

    images = prepared_of(*of("tensors")).images
    train, test = code.tensors()
    assert torch.equal(images.x, torch.cat([train.tensors[0], test.tensors[0]]))
    pictures = prepared_of(*of("kinds", "dataset.args={kind:Pictures}")).images
    assert np.array_equal(pictures.x[5].numpy(), np.asarray(code.Pictures(9)[5][0]).transpose(2, 0, 1))
    deep = prepared_of(*of("kinds", "dataset.args={kind:Sixteen}")).images
    assert deep.x[7, 0].unique().tolist() == [3007]  # more than 8 bits are not cut


def test_what_is_drawn_is_the_same_each_time_and_chance_goes_on_afterwards(mine):
    import random

    def read(seed: int) -> np.ndarray:
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        x = torch_function.read("data_of_the_user.drawn", None, None).x
        assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])
        return x

    first, again = read(3), read(4)
    assert np.array_equal(first, again) and len(np.unique(first)) == 3 * 24


def test_a_run_is_known_by_the_samples_and_not_by_the_function(mine, clrun, prepared_of):
    code, _, err = clrun(*of("waves"), "scenario=class", "split.classes=[[a,b],[c,d]]")
    assert code == 0, err
    plain, more, noisy = (
        prepared_of(*of("waves", *args)) for args in ((), ("dataset.args={count:28}",), ("dataset.args={noise:0.2}",))
    )
    assert len({plain.id, more.id, noisy.id}) == 3
    Path("data_of_the_user.py").rename("elsewhere_of_the_user.py")
    assert prepared_of(*(text.replace("data_of", "elsewhere_of") for text in of("waves"))).id == plain.id
    sys.modules.pop("elsewhere_of_the_user")


def test_a_bar_on_a_terminal(mine, monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    torch_function.read("data_of_the_user.waves", None, None)
    assert "reading 32 samples of data_of_the_user.waves" in capfd.readouterr().err.replace("\n", "")


def test_threads_read_the_same(mine):
    pairs = [(np.arange(4.0) + k, k) for k in range(50)]
    alone, many = (
        map_style.collect(pairs, "train", "here", lambda x, where: x, lambda n: None, threads) for threads in (1, 4)
    )
    assert np.array_equal(alone[0], many[0]) and alone[1].tolist() == many[1].tolist() == list(range(50))


# ---------------------------------------------------------------- what is refused


def odd(kind: str, place: str = "train") -> tuple[str, ...]:
    return of("odd", f"dataset.args={{kind:'{kind}',place:{place}}}")


def named(*lists: str) -> tuple[str, ...]:
    return of("named", f"dataset.args={{first:{lists[0]},second:{lists[-1]}}}")


WRONG = {
    "none named": (("dataset=torch", *SHORT), "type dataset.target=package.function"),
    "no module": (("dataset=torch", "dataset.target=nothing.f", *SHORT), "there is no module nothing"),
    "no function": (of("wave"), "there is no function of that name; name one as file.function"),
    "no dot": (("dataset=torch", "dataset.target=waves", *SHORT), "there is no function of that name"),
    "a number": (of("number"), "there is no function of that name"),
    "wrong argument": (of("waves", "dataset.args={counts:3}"), "the function has failed (TypeError: waves() got an"),
    "no mapping": (of("waves", "dataset.args=[3]"), "dataset.args=[3]: must be names with values"),
    "raises": (of("raising"), "the function has failed (RuntimeError: the disk is not there)"),
    "one data set": (of("one"), "the function returned a Waves; return two Datasets, (train, test)"),
    "three data sets": (of("three"), "the function returned a tuple of 3; return two Datasets"),
    "dictionaries": (of("dictionaries"), "the train part is a dict"),
    "iterable": (of("streams"), "the train part has no length (TypeError"),
    "no length": (of("endless"), "the train part has no length (TypeError"),
    "no samples": (of("empty"), "the test part has no samples"),
    "a sample fails": (of("failing"), "train[0] is a float; return a pair"),
    "no label at all": (odd("one"), "train[5] is a tuple of 1; return a pair, (x, label)"),
    "three things": (odd("three", "test"), "test[5] is a tuple of 3; return a pair, (x, label)"),
    "a dictionary": (odd("dict"), "train[5] is a dict; return a pair, (x, label)"),
    "an array": (odd("alone"), "train[5] is a ndarray; return a pair, (x, label)"),
    "text": (odd("text"), "train[5] is a str; return a tensor or an array of numbers"),
    "nothing": (odd("none"), "train[5] is a NoneType; return a tensor or an array of numbers"),
    "ragged": (odd("ragged"), "train[5] is no array of numbers (ValueError"),
    "objects": (odd("objects"), "train[5] is a ndarray of object; return a tensor or an array of numbers"),
    "complex": (odd("complex"), "train[5] is a ndarray of complex128"),
    "sparse": (odd("sparse"), "train[5] is no array of numbers (TypeError"),
    "other shapes": (odd("wide"), "train[5] has the shape (4,), and train[0] has (3,); bring all to one shape"),
    "other kinds": (odd("bytes"), "train[5] is uint8 and train[0] is float64"),
    "NaN": (odd("nan"), "x_train[5, 0] is nan, which is no finite number"),
    "too large": (odd("large", "test"), "x_test[5, 0] is inf, which is no finite number"),
    "a word as label": (odd("word label"), "the label of train[5] is cat (str); return the number of the class"),
    "no label": (odd("no label"), "the label of train[5] is None (NoneType); return the number of the class"),
    "a float as label": (odd("float label"), "the label of train[5] is 1.0 (float)"),
    "one-hot label": (odd("one-hot label"), "the label of train[5] is tensor([0., 1., 0., 0.]) (Tensor)"),
    "negative label": (odd("negative label"), "y_train[5] is -1; number the classes from 0"),
    "huge label": (odd("huge label", "test"), "y_test has the label 1000000000; number the classes from 0"),
    "a label beyond": (odd("absent label"), "y_train has no training sample of class 4"),
    "one class": (of("one_class"), "there is one class only"),
    "a class untested": (of("untested"), "y_test has no test sample of class 3"),
    "few names": (named("[a,b,c]"), "there is the label 3 but names has 3 entries"),
    "a name twice": (named("[a,b,a,c]"), "names has a twice"),
    "names that are numbers": (named("[1.5,2,3,4]"), "its attribute classes holds other things than names"),
    "names that are none": (named("3"), "its attribute classes is a int; give a list of names"),
    "other names": (named("[a,b,c,d]", "[a,b,d,c]"), "the training part has the classes a, b, c, d ..."),
    "sizes": (of("kinds", "dataset.args={kind:Ragged}"), "train[1] has the shape (3, 9, 6), and train[0]"),
    "a size of numbers": (of("waves", "dataset.size=8"), "dataset.size=8 resizes pictures of Pillow, and train[0]"),
    "other parts": (
        of("with_item", "dataset.args={item:[[1,2],1],place:test}"),
        "test[5] has the shape (2,), and test[0] has (3,)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("typed, said", WRONG.values(), ids=WRONG)
def test_wrong_functions_and_samples(mine, clrun, typed, said):
    sys.dont_write_bytecode, before = True, written()
    refused(clrun(*typed), said, before)
