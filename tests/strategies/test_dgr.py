"""dgr against its equation, with the generator as torch.nn modules and one sample a pass."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import live
from helpers import module_of
from test_memory_and_replay import SMALL
from test_replay_options import a_batch
from torch import nn

from clrun.strategy import normal
from clrun.strategy.generator import flat_inputs
from clrun.system.errors import UsageError

GENERATOR = ("generator_units=9", "latent=4")


def part(pieces, name):
    """Encoder or decoder as torch.nn modules."""
    layers = []
    for i in range(3):
        weight, bias = pieces[f"generator.{name}.{i}.weight"], pieces[f"generator.{name}.{i}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("normalize", ["true", "false"])
def test_dgr_is_its_equation(stack_of, scenario, normalize):
    """Of each sample of a third task: cross entropy and generator's loss, of the batch and of what is generated, which
    the old network labels for each old task. The new one, whose head is turned round, would label otherwise."""
    stack = stack_of("strategy=dgr", f"scenario={scenario}", f"dataset.normalize={normalize}", *GENERATOR, *SMALL)
    run, _ = stack.learn(stack.initialize(), 0)
    run, _ = stack.learn(run, 1)
    strategy, batch = stack.strategy, a_batch(stack, 2)
    head = strategy.net.layout.where(lambda name: name.startswith("head."), run.theta)
    theta = torch.where(head, 0.01 - run.theta, run.theta + 0.02)
    old, new = (strategy.net.layout.view(v) for v in (run.state.teacher, theta))
    assert torch.equal(run.state.teacher, run.theta)
    teacher, student = module_of(strategy, run.theta), module_of(strategy, theta)
    e = normal(batch.noise[:, 0], 3 * 12 * 4).view(12, 3, 4)
    total = replay = generator = 0.0
    labelled_otherwise = 0

    def vae(values, noise):
        mean, log_var = part(new, "encode")(values).chunk(2)
        output = part(new, "decode")(mean + (log_var / 2).exp() * noise).sigmoid()
        error = F.binary_cross_entropy(output, values, reduction="sum")
        return (error + (mean**2 + log_var.exp() - 1 - log_var).sum() / 2) / 64

    for i, (row, y) in enumerate(zip(batch.rows.tolist(), batch.y.tolist(), strict=True)):
        values = part(old, "decode")(e[i, 0]).sigmoid()
        x = (values * 255).view(1, 8, 8) * strategy.data.scale + strategy.data.shift
        z, z_old, z_own = student(x[None])[0], teacher(x[None])[0], student(batch.x[i][None])[0]
        of_tasks = []
        for u in (0, 1):
            may, now = (stack.tables.active[s, u].nonzero()[:, 0] for s in (1, 2))
            of_tasks.append(z[now].exp().sum().log() - z[may[z_old[may].argmax()]])
            labelled_otherwise += int(z_old[may].argmax() != z[may].argmax())
        may = stack.tables.active[2, row // len(strategy.data.images)]
        own = strategy.data.images[row % len(strategy.data.images)].flatten().double() / 255
        of_batch = vae(own, e[i, 1])
        replay, generator = replay + sum(of_tasks) / 2, generator + of_batch
        total = total + (z_own[may].exp().sum().log() - z_own[y] + of_batch) / 3
        total = total + (sum(of_tasks) / 2 + vae(values, e[i, 2])) * 2 / 3
    loss, aux = strategy.loss(theta, run.state, stack.hp, batch)
    assert labelled_otherwise == 24
    assert loss.item() == pytest.approx(total.item() / 12, rel=1e-9)
    assert aux["replay_loss"].item() == pytest.approx(replay.item() / 12, rel=1e-9)
    assert aux["generator_loss"].item() == pytest.approx(generator.item() / 12, rel=1e-9)


def test_new_outputs_learn_that_old_samples_are_none_of_theirs(stack_of):
    stack = stack_of("strategy=dgr", "scenario=class", *GENERATOR, *SMALL)
    run, _ = stack.learn(stack.initialize(), 0)
    strategy, batch = stack.strategy, a_batch(stack, 1)
    x = strategy.data.inputs(stack.tables, torch.arange(12), torch.zeros(12, dtype=torch.long))
    z = torch.zeros(12, strategy.data.outputs, dtype=x.dtype, requires_grad=True)
    strategy.replay_loss(z, x, run.state, batch).backward()
    new = stack.tables.active[1, 0] & ~stack.tables.active[0, 0]
    assert new.any() and (z.grad[:, new] > 0).all()  # a step lowers them


def test_the_first_task_is_plain_training_of_the_network(stack_of):
    """Adam moves each weight by itself, so the generator beside it changes nothing."""
    dgr, _ = stack_of("strategy=dgr", *GENERATOR).learn(stack_of("strategy=dgr", *GENERATOR).initialize(), 0)
    plain, _ = stack_of("strategy=finetune").learn(stack_of("strategy=finetune").initialize(), 0)
    assert (dgr.theta[: len(plain.theta)] - plain.theta).abs().max() < 1e-12


def test_floats_are_generated_as_numbers(stack_of, tmp_path):
    """Features, not pixels: half the square of the difference, and no sigmoid."""
    random = np.random.default_rng(0)
    x, y = random.normal(3, 2, (80, 6)).astype("float32"), np.arange(80) % 4
    np.savez(tmp_path / "a.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    stack = stack_of("strategy=dgr", "dataset=arrays", f"dataset.file={tmp_path / 'a.npz'}", "tasks=2", *GENERATOR)
    run, reports = live(stack)
    generator, pieces = stack.strategy.generator, stack.strategy.net.layout.view(run.theta)
    assert generator.floats
    assert reports[1].health[0]["replay_loss"] > 0
    values, noise = torch.randn(3, 6).double(), torch.randn(3, 4).double()
    mean, log_var = part(pieces, "encode")(values).chunk(2, 1)
    output = part(pieces, "decode")(mean + (log_var / 2).exp() * noise)
    wanted = (output - values).square().sum(1) / 2 + (mean**2 + log_var.exp() - 1 - log_var).sum(1) / 2
    assert (generator.loss(pieces, values, noise) - wanted / 6).abs().max() < 1e-12
    assert torch.equal(generator.generated(pieces, noise), generator.apply(pieces, "decode", noise))


def test_a_network_that_reads_pictures_is_refused(stack_of):
    assert flat_inputs(stack_of("strategy=dgr").strategy.net.network) == 64
    with pytest.raises(UsageError, match="type model=mlp"):
        stack_of("strategy=dgr", "model=cnn", "model.width=2")
