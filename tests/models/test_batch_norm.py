"""Batch norm over the samples that are there: PyTorch's on the unpadded batch, in values, gradients and statistics."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clrun.models import BatchNormMode, BatchNormRecord, Layout, Net, Network, batch_norm, updated_statistics
from clrun.models.batch_norm import Moments

SHAPES = {"table": (3,), "series": (3, 5), "picture": (3, 4, 2), "volume": (3, 2, 3, 2)}


def padded(shape, n, B=8, seed=0, dtype=torch.float64):
    """A batch of n samples filled up to B by samples of another scale, and what a gradient needs; seeded."""
    draw = torch.Generator().manual_seed(seed)

    def randn(*size):
        return torch.randn(*size, generator=draw, dtype=torch.float64).to(dtype)

    x, cotangent = 2 * randn(B, *shape) + 3, randn(B, *shape)
    x[n:] = 50 * randn(B - n, *shape) - 7
    cotangent[n:] = 0  # a loss takes no part in samples that are not there
    return SimpleNamespace(
        x=x, weight=(torch.arange(B) < n).to(dtype), cotangent=cotangent, scale=randn(shape[0]), shift=randn(shape[0])
    )


def ours(x, scale, shift, weight, cotangent):
    y, _ = batch_norm(x, weight, None, None, scale, shift)
    return (y * cotangent).sum(), y


def pytorchs(x, scale, shift, cotangent):
    y = F.batch_norm(x, None, None, scale, shift, True)
    return (y * cotangent).sum(), y


def gradients(f, *rest):
    return torch.func.grad(f, (0, 1, 2), has_aux=True)(*rest)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("n", [2, 5, 8])
def test_equals_pytorchs_on_the_unpadded_batch(shape, n):
    b = padded(shape, n)
    (dx, *parameters), y = gradients(ours, b.x, b.scale, b.shift, b.weight, b.cotangent)
    (dx_pytorch, *expected), y_pytorch = gradients(pytorchs, b.x[:n], b.scale, b.shift, b.cotangent[:n])
    assert (y[:n] - y_pytorch).abs().max() < 1e-12
    assert (dx[:n] - dx_pytorch).abs().max() < 1e-12
    assert dx[n:].abs().max() == 0 if n < 8 else True
    for g, other in zip(parameters, expected, strict=True):
        assert (g - other).abs().max() < 1e-12
    _, moments = batch_norm(b.x, b.weight, None, None, b.scale, b.shift)
    dims = [0, *range(2, b.x.dim())]
    variance, mean = torch.var_mean(b.x[:n], dims, correction=0)
    assert (moments.mean - mean).abs().max() < 1e-12
    assert (moments.var - variance).abs().max() < 1e-12
    assert moments.n == n * b.x[0, 0].numel()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_whole_batch_has_the_same_moments_without_weights(shape):
    b = padded(shape, 8)
    y, moments = batch_norm(b.x, None, None, None, b.scale, b.shift)
    weighted, expected = batch_norm(b.x, b.weight, None, None, b.scale, b.shift)
    assert torch.equal(y, F.batch_norm(b.x, None, None, b.scale, b.shift, True))
    assert (y - weighted).abs().max() < 1e-12
    for v, other in zip(moments, expected, strict=True):
        assert (v - other).abs().max() < 1e-12


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_stack_of_ragged_batches(shape):
    """vmap of grad, with an empty batch among them, which stays finite and hands on no gradient."""
    sizes = (8, 5, 2, 0)
    runs = [padded(shape, n, seed=n) for n in sizes]
    x, scale, shift, weight, cotangent = (
        torch.stack([getattr(b, name) for b in runs]) for name in ("x", "scale", "shift", "weight", "cotangent")
    )
    together, y = torch.vmap(lambda *v: gradients(ours, *v))(x, scale, shift, weight, cotangent)
    assert y.isfinite().all() and all(v.isfinite().all() for v in together)
    assert all(v[-1].abs().max() == 0 for v in together)
    for r, (n, b) in enumerate(zip(sizes[:-1], runs, strict=False)):
        alone, y_alone = gradients(pytorchs, b.x[:n], b.scale, b.shift, b.cotangent[:n])
        assert (y[r, :n] - y_alone).abs().max() < 1e-12
        assert (together[0][r, :n] - alone[0]).abs().max() < 1e-12
        assert all((v[r] - other).abs().max() < 1e-12 for v, other in zip(together[1:], alone[1:], strict=True))


def test_float32_is_as_exact_as_pytorchs():
    """A mean far from zero, and many values: compared with float64."""
    b = padded((4, 16, 16), 20, B=32, dtype=torch.float32)
    b.x += 100
    y = ours(b.x, b.scale, b.shift, b.weight, b.cotangent)[1][:20]
    double = pytorchs(b.x[:20].double(), b.scale.double(), b.shift.double(), b.cotangent[:20])[1]
    single = pytorchs(b.x[:20], b.scale, b.shift, b.cotangent[:20])[1]
    assert (y - double).abs().max() < 2 * (single - double).abs().max() + 1e-6


def test_first_and_second_derivatives():
    """Those of the moments too, against finite differences."""
    b = padded((2, 3), 3, B=4)

    def f(x, scale, shift):
        y, moments = batch_norm(x, b.weight, None, None, scale, shift)
        return y, moments.mean, moments.var

    arguments = tuple(v.requires_grad_() for v in (b.x / 10, b.scale, b.shift))
    assert torch.autograd.gradcheck(f, arguments)
    assert torch.autograd.gradgradcheck(f, arguments)


def test_without_scale_and_shift_and_in_half_precision():
    b = padded((3, 4, 2), 5)
    y, _ = batch_norm(b.x, b.weight, None, None, None, None, 1e-3)
    assert (y[:5] - F.batch_norm(b.x[:5], None, None, None, None, True, eps=1e-3)).abs().max() < 1e-12
    half, moments = batch_norm(b.x.bfloat16(), b.weight.float(), None, None, None, None)
    assert half.dtype == torch.bfloat16 and moments.mean.dtype == torch.float32
    assert (half[:5].double() - batch_norm(b.x, b.weight, None, None, None, None)[0][:5]).abs().max() < 0.05


def test_evaluation_mode_is_pytorchs():
    b = padded((3, 4, 2), 5)
    mean, var = torch.randn(3).double(), torch.rand(3).double()
    y, moments = batch_norm(b.x, b.weight, mean, var, b.scale, b.shift, 1e-3)
    assert torch.equal(y, F.batch_norm(b.x, mean, var, b.scale, b.shift, False, eps=1e-3)) and moments is None


def test_a_single_value_is_refused_as_pytorch_refuses_it():
    with pytest.raises(ValueError, match="single value per channel"):
        batch_norm(torch.ones(1, 3), None, None, None, None, None)
    batch_norm(torch.ones(1, 3, 2), None, None, None, None, None)


# ---------------------------------------------------------------- running statistics


@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_running_statistics_are_those_of_the_module(kind, momentum):
    """Batches of several sizes, filled up, an empty one among them; momentum and eps are the layer's."""
    shape = {nn.BatchNorm1d: (3,), nn.BatchNorm2d: (3, 4, 2), nn.BatchNorm3d: (3, 2, 3, 2)}[kind]
    module = kind(3, eps=1e-3, momentum=momentum).double()
    network = OneNorm(kind(3, eps=1e-3, momentum=momentum))
    statistics = {name: v.double() for name, v in network.statistics().items()}
    theta = torch.cat([module.weight, module.bias]).detach()
    for step, n in enumerate((8, 3, 0, 5, 2)):
        b, records, before = padded(shape, n, seed=step), [], {name: v.clone() for name, v in statistics.items()}
        network.net.train_mode(b.weight, records)(theta, b.x)
        fresh = updated_statistics(statistics, records)
        assert all(torch.equal(v, before[name]) for name, v in statistics.items())
        statistics = fresh
        if n:
            module(b.x[:n])
        assert (statistics["norm.mean"] - module.running_mean).abs().max() < 1e-12
        assert (statistics["norm.var"] - module.running_var).abs().max() < 1e-12
    assert (network.net.eval_mode(statistics)(theta, b.x) - module.eval()(b.x)).abs().max() < 1e-12


class OneNorm(Network):
    """A network that is one batch norm."""

    def __init__(self, norm):
        self.layers = {"norm": norm}
        shapes = {name: tuple(v.shape) for name, v in self.parameters().items()}
        self.net = Net(self, Layout(shapes))

    def forward(self, weights, x, tap, before):
        norm = self.layers["norm"]
        return weights.batch_norm("norm", x, norm.eps, norm.momentum)


def test_a_layer_without_running_statistics_is_normalised_by_its_batch_in_evaluation_too():
    network = OneNorm(nn.BatchNorm1d(3, track_running_stats=False, affine=False))
    b, records = padded((3,), 8), []
    assert not network.statistics()
    expected = F.batch_norm(b.x, None, None, None, None, True)
    theta = torch.zeros(0, dtype=torch.float64)
    assert torch.equal(network.net.eval_mode({})(theta, b.x), expected)
    network.net.train_mode(None, records)(theta, b.x)
    assert records and updated_statistics({}, records) == {}


def test_trained_statistics_of_a_layer_are_the_initial_ones():
    """As a network has them whose weights come from a file."""
    norm = nn.BatchNorm2d(3)
    norm(torch.randn(4, 3, 2, 2))
    statistics = OneNorm(norm).statistics()
    assert torch.equal(statistics["norm.mean"], norm.running_mean) and torch.equal(
        statistics["norm.var"], norm.running_var
    )
    assert statistics["norm.mean"].data_ptr() != norm.running_mean.data_ptr()


def test_passes_count_in_their_order_and_a_layer_may_be_used_twice():
    first, second = (Moments(torch.tensor([m]), torch.ones(1), torch.tensor(3.0)) for m in (1.0, 5.0))
    records = [BatchNormRecord("norm", moments, 0.5) for moments in (first, second)]
    statistics = {"norm.mean": torch.zeros(1), "norm.var": torch.zeros(1)}
    new = updated_statistics(statistics, records)
    assert new["norm.mean"] == 0.5 * (0.5 * 1) + 0.5 * 5
    assert new["norm.var"] == pytest.approx(0.75 * 3 / 2)
    assert updated_statistics(statistics, records[::-1])["norm.mean"] != new["norm.mean"]


# ---------------------------------------------------------------- which samples are there


def test_several_batches_one_after_the_other_and_several_rows_of_a_sample():
    mode = BatchNormMode(sample_weight=torch.tensor([1.0, 1.0, 0.0]))
    assert mode.of_batch(3) is mode
    assert mode.of_batch(6).sample_weight.tolist() == [1, 1, 0, 1, 1, 0]
    assert mode.weight_of(torch.zeros(6, 2)).tolist() == [1, 1, 1, 1, 0, 0]
    assert BatchNormMode().of_batch(5).weight_of(torch.zeros(5, 2)) is None
    for wrong in (lambda: mode.of_batch(4), lambda: mode.weight_of(torch.zeros(5, 2))):
        with pytest.raises(ValueError, match="weighing"):
            wrong()


def test_passes_that_do_not_count():
    network, b, records = OneNorm(nn.BatchNorm1d(3)), padded((3,), 5), []
    theta = torch.cat([b.scale, b.shift])
    training = network.net.train_mode(b.weight, records)
    y = training.unrecorded()(theta, b.x)
    training.eval_mode({name: v.double() for name, v in network.statistics().items()})(theta, b.x)
    assert not records
    assert torch.equal(training(theta, b.x), y) and len(records) == 1
    other = training.weighing(1 - b.weight)(theta, b.x)
    assert len(records) == 2 and records[1].moments.n == 3 and not torch.equal(other, y)
    assert not any(v.requires_grad for record in records for v in record.moments)
