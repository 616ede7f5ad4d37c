"""Frozen networks: pictures become features, as a loop over single pictures makes them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from user_networks import Eyes, Features

from clrun.models.frozen import FrozenModule, FrozenTorchvision, Preparation, resized
from clrun.models.weights_file import read_weights
from clrun.system.errors import UsageError


def frozen(target="user_networks.Eyes", inputs=(3, 12, 12), **keys):
    defaults = {"args": None, "weights": None, "head": "keep", "seed": 0, "size": None, "normalize": "imagenet"}
    return FrozenModule(inputs, target, **(defaults | keys))


def pictures(count=9, shape=(3, 12, 12), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


MEANS, DEVIATIONS = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def by_hand(module, x, normalize):
    """One picture after another, in float64."""
    module, rows = copy.deepcopy(module).double().eval(), []
    for picture in x:
        z = picture / 255.0
        if normalize == "imagenet":
            z = (z - MEANS[:, None, None]) / DEVIATIONS[:, None, None]
        if normalize == "half":
            z = 2 * z - 1
        with torch.no_grad():
            rows.append(module(torch.from_numpy(z)[None])[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("normalize", ["imagenet", "half", "none"])
def test_features_equal_a_loop_over_pictures(normalize):
    network, x = frozen(normalize=normalize, seed=3), pictures()
    torch.manual_seed(3)
    made = network(x)
    assert made.dtype == np.float32 and made.shape == (9, 7)
    np.testing.assert_allclose(made, by_hand(Eyes(), x, normalize), rtol=1e-4, atol=1e-5)


def test_many_pictures_go_in_batches():
    network, x = frozen(), pictures(1100, (3, 12, 12))
    alone = np.concatenate([network(x[i : i + 1]) for i in range(0, 1100, 100)])
    np.testing.assert_allclose(network(x)[::100], alone, rtol=1e-4, atol=1e-5)


def test_grey_pictures_count_as_coloured_for_imagenet_alone():
    grey = pictures(4, (1, 12, 12))
    coloured = np.repeat(grey, 3, axis=1)
    assert np.array_equal(frozen(inputs=(1, 12, 12))(grey), frozen()(coloured))
    one_channel = frozen("user_networks.Features", inputs=(1, 8, 8), normalize="half", seed=1)
    torch.manual_seed(1)
    x = pictures(3, (1, 8, 8))
    np.testing.assert_allclose(one_channel(x), by_hand(Features(), x, "half"), rtol=1e-4, atol=1e-5)


def test_the_middle_of_a_resized_picture():
    wide = np.zeros((1, 3, 6, 18), np.uint8)
    wide[:, :, :, 6:12] = 200
    prepared = Preparation.of((3, 6, 18), None, 12, "none", "x")(torch.from_numpy(wide))
    assert prepared.shape == (1, 3, 12, 12) and (prepared[..., 2:-2] == pytest.approx(200 / 255))
    x = torch.rand(2, 3, 12, 12)
    assert torch.allclose(resized(x, 6), torch.nn.functional.interpolate(x, 6, mode="bilinear", antialias=True))
    network = frozen(inputs=(3, 6, 18), size=12)
    assert network(wide).shape == (1, 7)


def test_the_module_is_told_what_it_sees():
    """An argument `inputs` is the shape after resizing, with the channels that normalising gives it."""
    module = frozen("user_networks.Mlp", (1, 8, 8), size=10, args={"outputs": 4, "widths": [5]})
    assert module.module[1].in_features == 300


def test_the_head_is_dropped():
    network, x = frozen(head="drop", seed=5), pictures()
    torch.manual_seed(5)
    whole = Eyes()
    without = copy.deepcopy(whole)
    without.last = nn.Identity()
    np.testing.assert_allclose(network(x), by_hand(without, x, "imagenet"), rtol=1e-4, atol=1e-5)


def test_training_mode_and_the_global_generator_stay_out_of_it():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    network = frozen()
    assert torch.equal(torch.rand(3), expected)
    assert not any(module.training for module in network.module.modules())
    before = copy.deepcopy(network.module.state_dict())
    network(pictures())
    assert all(torch.equal(v, before[name]) for name, v in network.module.state_dict().items())


def test_the_digest_is_that_of_the_weights(tmp_path):
    torch.manual_seed(11)
    torch.save(Eyes().state_dict(), tmp_path / "a.pt")
    file = str(tmp_path / "a.pt")
    digests = {name: frozen(**keys).digest for name, keys in {
        "seed 0": {}, "seed 0 again": {}, "seed 1": {"seed": 1}, "seed 11": {"seed": 11}, "file": {"weights": file},
    }.items()}  # fmt: skip
    assert digests["seed 0"] == digests["seed 0 again"] != digests["seed 1"]
    assert digests["file"] == digests["seed 11"] != digests["seed 0"]
    torch.manual_seed(12)
    torch.save(Eyes().state_dict(), tmp_path / "a.pt")
    assert frozen(weights=file).digest == frozen(seed=12).digest, "the file was written again"


def test_a_library_s_network_loses_its_head():
    network = FrozenTorchvision((1, 8, 8), "squeezenet1_1", None, None, 0, 32, "imagenet")
    assert network(pictures(2, (1, 8, 8))).shape == (2, 512)
    network = FrozenTorchvision((3, 32, 32), "resnet18", {"num_classes": 3}, None, 0, None, "imagenet")
    assert network(pictures(2, (3, 32, 32))).shape == (2, 512)


def weights(tmp_path, name, tensors):
    torch.save(tensors, tmp_path / name)
    return str(tmp_path / name)


REFUSED = {
    "no class": ({"target": None}, "type features.target=package.Class"),
    "no such class": ({"target": "user_networks.Nose"}, "features.target=user_networks.Nose: there is no such class"),
    "no such module": ({"target": "no_networks.Eyes"}, "there is no module no_networks"),
    "no dot": ({"target": "Eyes"}, "type package.Class"),
    "no module": ({"target": "user_networks.wrong", "args": {"outputs": 3}}, "makes a int"),
    "cannot be made": ({"target": "user_networks.Fails"}, "cannot be made: RuntimeError: no such thing at all."),
    "wrong argument": ({"args": {"depth": 3}}, "cannot be made: TypeError"),
    "too small": ({"size": 4}, r"3 x 4 x 4 \(channels, height, width\): RuntimeError: .* Type a larger features.size"),
    "two outputs": ({"target": "user_networks.Pair", "inputs": (1, 8, 8), "normalize": "none"}, "returns a tuple"),
    "positions": (
        {"target": "user_networks.Pictures", "args": {}},
        r"returns \(2, 3, 12, 12\) for a batch of 2; it must return \(B, outputs or features\)",
    ),
    "chance": (
        {"target": "user_networks.Chance", "inputs": (1, 8, 8), "normalize": "none"},
        "draws random numbers in evaluation",
    ),
    "company": ({"target": "user_networks.Company"}, "other features when another picture is beside it"),
    "four channels": ({"inputs": (4, 12, 12)}, r"takes 3 channels \(features.normalize=imagenet\), and .* have 4"),
    "channels of the module": ({"inputs": (4, 12, 12), "normalize": "none"}, "not take these pictures, 4 x 12 x 12"),
    "default weights": ({"weights": "DEFAULT"}, "only features=torchvision and features=timm have any"),
    "no linear head": ({"target": "user_networks.Features", "inputs": (1, 8, 8), "normalize": "none", "head": "drop"},
                       "its last layer is not linear; type features.head=keep"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_features_is_refused(case):
    keys, message = REFUSED[case]
    with pytest.raises(UsageError, match=message) as error:
        frozen(**keys)
    assert "\n" not in str(error.value)


def test_files_of_weights_that_do_not_fit_are_refused(tmp_path):
    state = Eyes().state_dict()
    cases = {
        str(tmp_path / "none.pt"): "features.weights=.*none.pt cannot be read: No such file",
        weights(tmp_path, "wide.pt", Eyes(width=9).state_dict()): "conv.weight is .* in the network",
        weights(tmp_path, "less.pt", {n: v for n, v in state.items() if n != "last.bias"}): "it lacks last.bias",
        weights(tmp_path, "more.pt", state | {"x": torch.ones(1)}): "it has x, which the network has not",
        weights(tmp_path, "words.pt", {"a": "b"}): "holds something else than weights by name",
    }
    (tmp_path / "torn.safetensors").write_bytes(b"1234567890")
    cases[str(tmp_path / "torn.safetensors")] = "is no file of weights"
    for file, message in cases.items():
        with pytest.raises(UsageError, match=message) as error:
            frozen(weights=file)
        assert "\n" not in str(error.value) and "model.weights" not in str(error.value)


def test_weights_that_were_written_again_are_read_again(tmp_path):
    file = weights(tmp_path, "a.pt", {"x": torch.zeros(2)})
    assert read_weights(file, "model.weights")["x"].tolist() == [0, 0]
    weights(tmp_path, "a.pt", {"x": torch.ones(3)})
    assert read_weights(file, "model.weights")["x"].tolist() == [1, 1, 1]


def test_a_head_of_other_classes_in_the_file_is_no_hindrance(tmp_path):
    file = weights(tmp_path, "a.pt", FrozenTorchvision((3, 32, 32), "resnet18", {"num_classes": 1000}, None, 4, None,
                                                       "imagenet").module.state_dict())  # fmt: skip
    one = FrozenTorchvision((3, 32, 32), "resnet18", None, file, 0, None, "imagenet")
    other = FrozenTorchvision((3, 32, 32), "resnet18", None, None, 4, None, "imagenet")
    x = pictures(2, (3, 32, 32))
    assert np.array_equal(one(x), other(x)) and one.digest == other.digest
