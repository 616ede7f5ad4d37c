"""Networks against the same networks as torch.nn modules."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from clrun.models import CNN, MLP, Layout, Net, ResNet18, initialize_network, updated_statistics
from clrun.system.errors import UsageError

SHAPES = {
    "mlp": {"widths": [7, 5]},
    "mlp_batch": {"widths": [7, 5], "norm": "batch"},
    "cnn": {"width": 3},
    "group": {"width": 4, "norm": "group"},
    "batch": {"width": 4, "norm": "batch"},
}

# The classes of networks that are no ResNet18.
KINDS = {"mlp": MLP, "mlp_batch": MLP, "cnn": CNN}


def made(kind, seed=0, scheme="torch", size=16):
    network = initialize_network(
        seed, KINDS.get(kind, ResNet18), scheme, inputs=(3, size, size), outputs=6, **SHAPES[kind]
    )
    pieces = network.parameters()
    layout = Layout({n: tuple(p.shape) for n, p in pieces.items()})
    return Net(network, layout), layout.flat(pieces).double()


class Reference(nn.Module):
    """The same layers, as torch.nn would use them; ResNet-18 after torchvision's BasicBlock with a 3x3 stem."""

    def __init__(self, kind, layers):
        super().__init__()
        self.kind, self.layers = kind, nn.ModuleDict({name.replace(".", "_"): m for name, m in layers.items()})

    def layer(self, name, x):
        return self.layers[name.replace(".", "_")](x)

    def norm_of(self, name, x, stride):
        convolution = self.layers[name.replace(".", "_")]
        y = F.conv2d(x, convolution.weight, None, stride, convolution.kernel_size[0] // 2)
        return self.layer(f"{name}.norm", y)

    def forward(self, x):
        if self.kind == "mlp":
            return self.layer("head", self.layer("hidden.1", self.layer("hidden.0", x.flatten(1)).relu()).relu())
        if self.kind == "mlp_batch":
            for name in ("hidden.0", "hidden.1"):
                x = self.layer(f"{name}.norm", self.layer(name, x.flatten(1))).relu()
            return self.layer("head", x)
        if self.kind == "cnn":
            x = F.max_pool2d(self.layer("conv.0", x).relu(), 2)
            x = F.max_pool2d(self.layer("conv.1", x).relu(), 2)
            return self.layer("head", self.layer("hidden.0", x.flatten(1)).relu())
        x = self.norm_of("stem", x, 1).relu()
        for i, stride in enumerate((1, 1, 2, 1, 2, 1, 2, 1)):
            y = self.norm_of(f"block.{i}.conv.1", self.norm_of(f"block.{i}.conv.0", x, stride).relu(), 1)
            short = self.norm_of(f"block.{i}.short", x, stride) if f"block_{i}_short" in self.layers else x
            x = (y + short).relu()
        return self.layer("head", F.adaptive_avg_pool2d(x, 1).flatten(1))


def reference(kind, net, theta):
    module = Reference(kind, net.network.layers).double()
    own = {
        f"layers.{n.rpartition('.')[0].replace('.', '_')}.{n.rpartition('.')[2]}": v
        for n, v in net.layout.view(theta).items()
    }
    module.load_state_dict(own, strict=False)
    return module


@pytest.mark.parametrize("kind", SHAPES)
def test_training_pass_equals_modules(kind):
    net, theta = made(kind)
    module = reference(kind, net, theta).train()
    x = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    leaf = theta.clone().requires_grad_()
    ours, theirs = net(leaf, x), module(x)
    assert (ours - theirs).abs().max() < 1e-12
    (g,) = torch.autograd.grad(ours.square().sum(), leaf)
    theirs.square().sum().backward()
    names = {n.removeprefix("layers."): p.grad for n, p in module.named_parameters()}
    for name, piece in net.layout.view(g).items():
        layer, _, leafname = name.rpartition(".")
        assert (piece - names[f"{layer.replace('.', '_')}.{leafname}"]).abs().max() < 1e-9 * g.abs().max()


@pytest.mark.parametrize("kind", ["batch", "mlp_batch"])
def test_statistics_equal_batch_norms(kind):
    """Ten batches in training, then at rest: as PyTorch's batch norms keep them, without ever writing in place."""
    net, theta = made(kind)
    module = reference(kind, net, theta).train()
    stats = {name: v.double() for name, v in net.network.statistics().items()}
    for _ in range(10):
        x = torch.randn(6, 3, 16, 16, dtype=torch.float64) * 3 + 1
        before = {name: v.clone() for name, v in stats.items()}
        records = []
        net.train_mode(None, records)(theta, x)
        fresh = updated_statistics(stats, records)
        assert all(torch.equal(stats[name], v) for name, v in before.items())
        stats = fresh
        module(x)
    assert any(v.abs().max() > 0.1 for v in stats.values())
    x = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    assert (net.eval_mode(stats)(theta, x) - module.eval()(x)).abs().max() < 1e-9
    assert (net.eval_mode(stats)(theta, x) - net(theta, x)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", SHAPES)
def test_features_are_the_inputs_of_the_head(kind):
    """Alone, stacked, and where the head is a convolution, whose outputs are averaged over the positions."""
    net, theta = made(kind)
    x, pieces = torch.randn(4, 3, 16, 16, dtype=torch.float64), net.layout.view(theta)
    features = net.features(theta, x)
    assert (F.linear(features, pieces["head.weight"], pieces["head.bias"]) - net(theta, x)).abs().max() < 1e-12
    stacked = torch.vmap(net.features, (0, None))(torch.stack([theta, 2 * theta]), x)
    assert (stacked[0] - features).abs().max() < 1e-12


@pytest.mark.parametrize("kind", SHAPES)
def test_a_cosine_head(kind):
    """Ten times the cosine of each output's weights and the features, whatever the lengths of both; gradients by a
    difference."""
    options = SHAPES[kind] | {"head": "cosine"}
    network = initialize_network(0, KINDS.get(kind, ResNet18), "torch", inputs=(3, 16, 16), outputs=6, **options)
    pieces = network.parameters()
    assert [name for name in pieces if name.startswith("head")] == ["head.weight"]
    net = Net(network, Layout({n: tuple(p.shape) for n, p in pieces.items()}))
    theta, x = net.layout.flat(pieces).double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    features, weight = net.features(theta, x), net.layout.view(theta)["head.weight"]
    cosine = torch.stack([F.cosine_similarity(features, w[None]) for w in weight], 1)
    assert (net(theta, x) - 10 * cosine).abs().max() < 1e-12
    longer = net.layout.flat(net.layout.view(theta) | {"head.weight": weight * torch.arange(1, 7).double()[:, None]})
    assert (net(longer, x) - net(theta, x)).abs().max() < 1e-12


def test_features_of_a_convolution_that_is_the_head():
    class Pooled(nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.body, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, outputs, 1)

        def forward(self, x):
            return self.last(self.body(x).relu()).mean((2, 3))

    network = MLP.__new__(MLP)
    module = Pooled(6).double()
    network.layers = {"body": module.body, "head": module.last}
    network.forward = lambda weights, x, tap, before: weights.conv("head", weights.conv("body", x).relu()).mean((2, 3))
    pieces = network.parameters()
    net = Net(network, Layout({n: tuple(p.shape) for n, p in pieces.items()}))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    features = net.features(net.layout.flat(pieces), x)
    logits = F.linear(features, pieces["head.weight"].flatten(1), pieces["head.bias"])
    assert (logits - net(net.layout.flat(pieces), x)).abs().max() < 1e-12


@pytest.mark.parametrize("kind", SHAPES)
def test_stacked_equals_alone(kind):
    net, theta = made(kind)
    thetas = torch.stack([made(kind, seed)[1] for seed in range(3)])
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    assert torch.equal(thetas[0], theta)
    assert (torch.vmap(net, (0, None))(thetas, x) - torch.stack([net(t, x) for t in thetas])).abs().max() < 1e-12


@pytest.mark.parametrize("kind", SHAPES)
def test_taps_change_each_named_activation(kind):
    net, theta = made(kind)
    x, seen = torch.randn(2, 3, 16, 16, dtype=torch.float64), {}

    def tap(i, h):
        seen[i] = h.shape[1]
        return h * 0

    assert torch.equal(net(theta, x, tap), net.layout.view(theta)["head.bias"].expand(2, -1))
    assert seen == dict(enumerate(net.network.widths))
    assert len(net.network.taps) == len(seen)


@pytest.mark.parametrize("kind", SHAPES)
def test_before_comes_before_the_nonlinearity(kind):
    """An addition before each ReLU: with a large negative one nothing passes, and every tap sees zeros."""
    net, theta = made(kind)
    x, seen, passed = torch.randn(2, 3, 16, 16, dtype=torch.float64), {}, []

    def before(i, z):
        seen[i] = z.shape[1]
        return z - 1e6

    def tap(i, h):
        passed.append(h.abs().max().item())
        return h

    assert torch.equal(net(theta, x, tap, before), net.layout.view(theta)["head.bias"].expand(2, -1))
    assert seen == dict(enumerate(net.network.widths))
    assert passed == [0.0] * len(seen)


def test_a_hidden_layer_is_relu_of_what_before_returns():
    net, theta = made("mlp")
    x, p = torch.randn(4, 3, 16, 16, dtype=torch.float64), net.layout.view(theta)
    shifts = [torch.randn(width, dtype=torch.float64) for width in net.network.widths]
    h = x.flatten(1)
    for i, shift in enumerate(shifts):
        h = (h @ p[f"hidden.{i}.weight"].mT + p[f"hidden.{i}.bias"] + shift).clamp(min=0)
    ours = net(theta, x, before=lambda i, z: z + shifts[i])
    assert (ours - h @ p["head.weight"].mT - p["head.bias"]).abs().max() < 1e-12


def test_initial_values_are_pytorchs():
    torch.manual_seed(3)
    module = nn.Linear(3 * 16 * 16, 7)
    net, theta = made("mlp", seed=3)
    assert torch.equal(net.layout.view(theta)["hidden.0.weight"], module.weight.detach().double())
    state = torch.random.get_rng_state()
    made("mlp", seed=9)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_xavier():
    net, theta = made("mlp", scheme="xavier")
    pieces = net.layout.view(theta)
    assert pieces["hidden.0.bias"].abs().max() == 0
    assert pieces["hidden.0.weight"].abs().max() <= (6 / (3 * 16 * 16 + 7)) ** 0.5
    assert pieces["hidden.0.weight"].std() == pytest.approx((2 / (3 * 16 * 16 + 7)) ** 0.5, rel=0.05)


def test_kaiming():
    """Uniform with the bound sqrt(6 / inputs) of He et al. 2015, and sqrt(3 / inputs) in the head."""
    net, theta = made("mlp", scheme="kaiming")
    pieces = net.layout.view(theta)
    assert pieces["hidden.0.bias"].abs().max() == pieces["head.bias"].abs().max() == 0
    for name, numerator in (("hidden.0.weight", 6), ("head.weight", 3)):
        bound = (numerator / pieces[name].shape[1]) ** 0.5
        assert 0.9 * bound < pieces[name].abs().max() <= bound


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("kind", SHAPES)
def test_picture_sizes(kind, size):
    """And the answer depends on the picture."""
    if (kind, size) == ("group", 8):
        with pytest.raises(UsageError, match=r"model\.width=20, or model\.norm=batch"):
            made(kind, size=size)
        return
    net, theta = made(kind, size=size)
    z = net(theta, torch.randn(2, 3, size, size, dtype=torch.float64))
    assert z.isfinite().all() and (z[0] - z[1]).abs().max() > 1e-6


def test_resnet_is_the_reduced_one():
    """20 filters: 1.09 million parameters (Lopez-Paz & Ranzato 2017); 64: torchvision's 11.17 with a 3x3 stem."""
    counts = {}
    for width in (20, 64):
        network = initialize_network(0, ResNet18, "torch", inputs=(3, 32, 32), outputs=10, width=width, norm="batch")
        counts[width] = sum(p.numel() for p in network.parameters().values())
    assert counts == {20: 1_094_750, 64: 11_173_962}


def test_layout_round_trip():
    layout = Layout({"a": (2, 3), "b": (), "c": (4,)})
    theta = torch.arange(11.0)
    assert layout.size == 11
    assert torch.equal(layout.flat(layout.view(theta)), theta)
    assert layout.where(lambda name: name == "c", theta).tolist() == [False] * 7 + [True] * 4
    assert (
        layout.flat({"a": torch.tensor(1.0), "b": torch.tensor(2.0), "c": torch.tensor(3.0)}).tolist()
        == [1] * 6 + [2] + [3] * 4
    )


def test_autocast_is_lower_precision():
    net, theta = made("mlp")
    x = torch.randn(4, 3, 16, 16)
    exact, rough = net(theta.float(), x), replace(net, autocast=torch.bfloat16)(theta.float(), x)
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.05


class CountedOperations(TorchDispatchMode):
    """Counts the operations that are called in it."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


def test_a_mask_of_names_is_few_operations():
    """HAT makes one twice in every step, where each operation is a kernel: neighbours are filled at once."""
    shapes = {f"hidden.{i}.weight": (2, 3) for i in range(4)} | {"gate.0": (3,), "gate.1": (2, 1)}
    like = torch.zeros(29)
    with CountedOperations() as counted:
        mask = Layout(shapes).where(lambda name: name.startswith("gate."), like)
    assert mask.tolist() == [False] * 24 + [True] * 5 and counted.number <= 3
