"""generative_classifier against its equations: autoencoders as torch.nn modules, densities as torch.distributions."""

import numpy as np
import pytest
import torch
from conftest import live
from test_dgr import part
from test_memory_and_replay import SMALL
from test_replay_options import a_batch
from torch.distributions import Bernoulli, Normal, kl_divergence

from clrun.strategy import Autoencoder, normal
from clrun.system.errors import UsageError

SIZES = ("autoencoder_units=9", "latent=3", "importance_samples=4")
OF_CLASSES = ("strategy=generative_classifier", "scenario=class", *SIZES)


def of_output(strategy, theta, output):
    """The weights of an output's autoencoder, by the names that they have in theta."""
    pieces = strategy.net.layout.view(theta)
    return {
        name.removeprefix(f"{output}."): piece for name, piece in pieces.items() if name.startswith(f"{output}.gener")
    }


def log_joint(weights, x, z):
    """log p(x, z): a Bernoulli variable for each pixel, a standard normal one for each latent variable."""
    pixels = Bernoulli(logits=part(weights, "decode")(z), validate_args=False).log_prob(x).sum(-1)
    return pixels + Normal(0, 1).log_prob(z).sum(-1)


def posterior(weights, x):
    mean, log_var = part(weights, "encode")(x).chunk(2, -1)
    return Normal(mean, (log_var / 2).exp())


def pixels_of(strategy, rows):
    return strategy.data.images[rows % len(strategy.data.images)].flatten(1).double() / 255


@pytest.mark.parametrize("normalize", ["true", "false"])
def test_the_loss_is_that_of_each_sample_by_its_own_autoencoder(stack_of, normalize):
    stack = stack_of(*OF_CLASSES, f"dataset.normalize={normalize}", *SMALL)
    run, _ = stack.learn(stack.initialize(), 0)
    strategy, batch = stack.strategy, a_batch(stack, 1)
    e, total, nats = normal(batch.noise[:, 0], 12 * 3).view(12, 3), 0.0, 0.0
    assert len(batch.y.unique()) > 1
    for i, x in enumerate(pixels_of(strategy, batch.rows)):
        weights = of_output(strategy, run.theta, batch.y[i].item())
        q = posterior(weights, x)
        z = q.mean + q.stddev * e[i]
        apart = kl_divergence(q, Normal(torch.zeros(3), torch.ones(3))).sum()
        total += (apart - Bernoulli(logits=part(weights, "decode")(z), validate_args=False).log_prob(x).sum()) / 64
        nats += apart
    loss, aux = strategy.loss(run.theta, run.state, stack.hp, batch)
    assert loss.item() == pytest.approx(total.item() / 12, rel=1e-9)
    assert aux["latent_nats"].item() == pytest.approx(nats.item() / 12, rel=1e-9)


def test_a_score_is_the_mean_of_importance_weights(stack_of):
    """And outputs of classes that never came are below all others."""
    stack = stack_of(*OF_CLASSES)
    run, _ = stack.learn(stack.initialize(), 0)
    strategy, rows = stack.strategy, stack.streams[0].test[0][:5]
    x = strategy.data.inputs(stack.tables, rows, torch.zeros(5, dtype=torch.long))
    scores = strategy.scores(run.theta, run.state, stack.hp, x, torch.zeros(5, dtype=torch.long))
    assert run.state.noise.shape == (4, 3)
    for i, pixels in enumerate(pixels_of(strategy, rows)):
        for output in (0, 1):
            weights = of_output(strategy, run.theta, output)
            q = posterior(weights, pixels)
            z = q.mean + q.stddev * run.state.noise
            ratios = log_joint(weights, pixels, z) - q.log_prob(z).sum(-1)
            assert scores[i, output].item() == pytest.approx(ratios.exp().mean().log().item(), rel=1e-9)
    assert (scores[:, 2:] < scores[:, :2].min(1, keepdim=True).values).all()


def test_the_estimate_tends_to_the_integral():
    """One latent variable, so that p(x) can be integrated on a grid."""
    torch.manual_seed(0)
    one, grid = Autoencoder(values=6, units=5, latent=1, floats=False), torch.linspace(-8, 8, 4001).double()
    weights = {name: 2 * value.double() for name, value in one.initial().items()}
    x = torch.rand(4, 6).double()
    wanted = [torch.trapezoid(log_joint(weights, v, grid[:, None]).exp(), grid).log().item() for v in x]
    found = one.log_likelihood(weights, x, torch.randn(10_000, 1).double())
    assert found.tolist() == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_an_autoencoder_moves_where_its_class_is_learnt_alone(stack_of, seeds):
    """With Adam, whose moments outlive a task, and with weight decay; the network, which nothing reads, never."""
    stack = stack_of(*OF_CLASSES, "optimizer.weight_decay=0.1", "split.order=fixed", "iterations=2", seeds=seeds)
    start = stack.initialize()
    first, _ = stack.learn(start, 0)
    second, _ = stack.learn(first, 1)
    for before, after, moved in ((start, first, {0, 1}), (first, second, {2, 3})):
        network, *old = stack.strategy.parts(before.theta.view(len(seeds), -1)[-1])
        same, *new = stack.strategy.parts(after.theta.view(len(seeds), -1)[-1])
        assert torch.equal(network, same)
        assert {o for o in range(10) if not torch.equal(old[o], new[o])} == moved


def test_floats_have_a_normal_density(stack_of, tmp_path):
    random = np.random.default_rng(0)
    x, y = random.normal(3, 2, (80, 6)).astype("float32"), np.arange(80) % 4
    np.savez(tmp_path / "a.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    stack = stack_of(*OF_CLASSES, "dataset=arrays", f"dataset.file={tmp_path / 'a.npz'}", "tasks=2", "model=linear")
    run, reports = live(stack)
    assert reports[1].health[0]["modelled_outputs"] == 4
    inputs, weights = torch.randn(3, 6).double(), of_output(stack.strategy, run.theta, 2)
    scores = stack.strategy.scores(run.theta, run.state, stack.hp, inputs, torch.zeros(3, dtype=torch.long))
    for i, value in enumerate(inputs):
        q = posterior(weights, value)
        z = q.mean + q.stddev * run.state.noise
        density = Normal(part(weights, "decode")(z), 1).log_prob(value).sum(-1) + 3 * np.log(2 * np.pi)
        ratios = density + Normal(0, 1).log_prob(z).sum(-1) - q.log_prob(z).sum(-1)
        assert scores[i, 2].item() == pytest.approx(ratios.exp().mean().log().item(), rel=1e-9)


@pytest.mark.parametrize(
    ("typed", "answer"),
    [(("scenario=domain",), "type scenario=class"), (("scenario=class", "model=cnn"), "type model=linear")],
)
def test_it_is_refused_where_it_cannot_work(stack_of, typed, answer):
    with pytest.raises(UsageError, match=answer):
        stack_of("strategy=generative_classifier", *typed)
