"""A torch.nn.Module as a network: it equals clrun's own, its parts behave as in PyTorch, and what cannot work is
refused."""

from dataclasses import replace

import pytest
import torch
from conftest import live
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from clrun.models.dropout import keep_mask
from clrun.models.libraries import channels_of
from clrun.strategies.ewc import EWC
from clrun.strategy import diagonal_fisher
from clrun.system.errors import UsageError

SHORT = ("strategy=ewc", "fisher_samples=4", "first_tasks=1", "batch_size=8", "drop_last=true", "iterations=2")
CONV = ("model=module", "model.target=user_networks.ConvNormDrop")


def same(a, b, tolerance=0.0):
    return all((x - y).abs().max() <= tolerance for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


@pytest.mark.parametrize("strategy", ["ewc", "er", "hat", "amn", "packnet", "lwf", "si"])
def test_an_mlp_written_as_a_module_gives_the_bytes_of_mlp(stack_of, strategy):
    module = ("model=module", "model.target=user_networks.Mlp", "model.args={widths:[12,8]}")
    one, reports = live(stack_of(f"strategy={strategy}", *module, "tasks=2"))
    other, expected = live(stack_of(f"strategy={strategy}", "model=mlp", "model.widths=[12,8]", "tasks=2"))
    assert same(one, other)
    assert [r.health for r in reports] == [r.health for r in expected]


@pytest.mark.parametrize("strategy", ["ewc", "er", "lwf", "agem", "der", "si", "mas", "joint"])
def test_a_stack_equals_its_runs_alone(stack_of, strategy):
    overrides = (f"strategy={strategy}", *CONV, "scenario=class", "tasks=2", "epochs=1")
    together, _ = live(stack_of(*overrides, "batch_size=50", seeds=(0, 1)))
    for r, seed in enumerate((0, 1)):
        alone, _ = live(stack_of(*overrides, "batch_size=50", seeds=[seed]))
        assert same(tree_map(lambda v: v[r], together), alone, 1e-9)


def brute_force(stack, run, pool, estimator):
    """The Fisher information by a loop over samples and labels, by autograd."""
    strategy = stack.strategy.eval_mode(run.stats)
    total = torch.zeros_like(run.theta)
    for batch in strategy.data.chunks(pool, 1):
        theta = run.theta.clone().requires_grad_()
        z = strategy.net(theta, batch.x).masked_fill(~batch.active, -1e9)
        log_p = z.log_softmax(-1)[0]
        for y in range(log_p.numel()):
            weight = log_p[y].exp().detach() if estimator == "exact" else float(batch.y[0] == y)
            (g,) = torch.autograd.grad(log_p[y], theta, retain_graph=True)
            total += weight * g.square()
    return total / len(pool.rows)


@pytest.mark.parametrize("target", ["ConvNormDrop", "Features", "Skip", "Tokens", "Groups"])
@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_fisher_information_equals_a_loop(stack_of, target, estimator):
    stack = stack_of("strategy=ewc", "model=module", f"model.target=user_networks.{target}", "tasks=2")
    run, _ = stack.learn(stack.initialize(), 0)
    pool = stack.pool(0, "train", torch.float64).first(20)
    F = diagonal_fisher(stack.strategy.eval_mode(run.stats), run.theta, run.state, stack.hp, pool, estimator=estimator)
    torch.testing.assert_close(F, brute_force(stack, run, pool, estimator), rtol=1e-9, atol=1e-14)


def test_batch_norm_is_that_of_pytorch(stack_of):
    """Training with plain SGD, without dropout, against PyTorch's own loop on the same batches."""
    stack = stack_of("strategy=finetune", *CONV, "model.args={p:0.0}", "optimizer=sgd", "tasks=2", "iterations=3")
    start = stack.initialize()
    from user_networks import ConvNormDrop

    net = stack.strategy.net
    twin = ConvNormDrop(net.layout.shapes["head.bias"][0], 0.0).double()
    pieces = net.layout.view(start.theta)
    names = {n: n.replace("fc.", "head.") if n.startswith("fc.") else f"body.{n}" for n, _ in twin.named_parameters()}
    twin.load_state_dict({n: pieces[name] for n, name in names.items()}, strict=False)
    optimizer = torch.optim.SGD(twin.parameters(), lr=float(stack.lr))
    sampler = stack.schedule.sampler(0, 0, "train")
    taken = sampler.sample(0, 3)
    data, tables = stack.strategy.data, stack.tables
    from clrun.data.batches import StepContext

    for k in range(3):
        when = StepContext(torch.tensor(0), torch.tensor(0), torch.tensor(0.0), torch.tensor(0), taken.noise[k])
        batch = data.batch(tables, taken.rows[k], taken.weight[k].double(), when)
        z = twin(batch.x).masked_fill(~batch.active, -1e9)
        optimizer.zero_grad()
        nn.functional.cross_entropy(z, batch.y).backward()
        optimizer.step()
    run, _ = stack.learn(start, 0)
    trained = net.layout.view(run.theta)
    for n, p in twin.named_parameters():
        torch.testing.assert_close(trained[names[n]], p.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(run.stats["body.norm.mean"], twin.norm.running_mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(run.stats["body.norm.var"], twin.norm.running_var, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- dropout


def test_masks_of_dropout_are_independent_draws():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(6, 512, generator=generator)
    kept = keep_mask(noise, 0, (512, 400), 0.3).double()
    assert kept.mean().item() == pytest.approx(0.7, abs=0.005)
    assert kept.mean(0).std().item() == pytest.approx((0.21 / 512) ** 0.5, rel=0.15)
    assert kept.mean(1).std().item() == pytest.approx((0.21 / 400) ** 0.5, rel=0.15)
    others = (keep_mask(noise, 1, (512, 400), 0.3), keep_mask(noise.flip(1), 0, (512, 400), 0.3))
    for other in (*others, kept.roll(1, 0), kept.roll(1, 1)):
        assert torch.corrcoef(torch.stack([kept.flatten(), other.double().flatten()]))[0, 1].abs() < 0.01


def test_dropout_is_off_where_a_run_is_evaluated_and_new_at_each_step(stack_of):
    stack = stack_of("strategy=finetune", *CONV, "tasks=2")
    theta, net = stack.initialize().theta, stack.strategy.net
    x, noise = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.rand(2, 6, 4)
    first, second, again = (net.train_mode(None, None, noise[i])(theta, x) for i in (0, 1, 0))
    assert torch.equal(first, again) and not torch.equal(first, second)
    evaluated = net.eval_mode(stack.initialize().stats)
    assert torch.equal(evaluated(theta, x), evaluated(theta, x))


# ---------------------------------------------------------------- heads, weights, frozen parts


def test_a_module_of_features_gets_a_head(stack_of):
    stack = stack_of("strategy=finetune", "model=module", "model.target=user_networks.Features", "tasks=2")
    assert stack.strategy.net.layout.shapes["head.weight"] == (10, 5)


def test_a_head_of_another_size_is_replaced(stack_of):
    stack = stack_of("model=module", "model.target=user_networks.Mlp",
                     "model.args={widths:[6],outputs:1000}", "tasks=2")  # fmt: skip
    assert stack.strategy.net.layout.shapes["head.weight"] == (10, 6)


def test_what_is_frozen_is_no_part_of_theta_and_stays(stack_of):
    stack = stack_of("strategy=ewc", *CONV, "model.train=depth", "tasks=2")
    net = stack.strategy.net
    assert list(net.layout.shapes) == ["body.depth.weight", "body.depth.bias", "head.weight", "head.bias"]
    before = net.network.fixed()
    run, _ = live(stack)
    assert run.stats == {} and net.network.fixed() == before


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_of_a_file_are_loaded_and_are_part_of_the_identity(prepared_of, stack_of, tmp_path, ending):
    from safetensors.torch import save_file
    from user_networks import ConvNormDrop

    twin, path = ConvNormDrop(1000), tmp_path / f"weights.{ending}"
    twin.norm.running_mean += 1
    save_file(twin.state_dict(), path) if ending == "safetensors" else torch.save(twin.state_dict(), path)
    overrides = (*CONV, f"model.weights={path}", "tasks=2", "strategy=finetune")
    first = prepared_of(*overrides)
    run = stack_of(*overrides).initialize()
    net = stack_of(*overrides).strategy.net
    assert torch.equal(net.layout.view(run.theta)["body.conv.weight"], twin.conv.weight.double())
    assert torch.equal(run.stats["body.norm.mean"], twin.norm.running_mean.double())
    moved = tmp_path / f"moved.{ending}"
    path.rename(moved)
    assert prepared_of(*CONV, f"model.weights={moved}", "tasks=2", "strategy=finetune").id == first.id
    twin.fc.bias.data += 1
    save_file(twin.state_dict(), path) if ending == "safetensors" else torch.save(twin.state_dict(), path)
    assert prepared_of(*overrides).id != first.id


def test_random_frozen_parts_of_two_seeds_are_not_stacked(prepared_of):
    from clrun.sweep.plan import stackable

    runs = [prepared_of(*CONV, "model.train=head", f"seed={seed}") for seed in (0, 1)]
    assert [len(stack) for stack in stackable(runs)] == [1, 1]
    assert [len(s) for s in stackable([prepared_of(*CONV, f"seed={seed}") for seed in (0, 1)])] == [2]


# ---------------------------------------------------------------- hidden layers


def test_a_connection_past_a_layer_is_seen(stack_of):
    skip = ("model=module", "model.target=user_networks.Skip", "tasks=2")
    with pytest.raises(UsageError, match="layers in a chain"):
        stack_of("strategy=hat", *skip)
    live(stack_of("strategy=amn", *skip))


def test_without_hidden_layers_the_refusal_says_what_to_write(stack_of):
    with pytest.raises(UsageError, match=r"write its nonlinearities as modules, such as nn.ReLU\(\)"):
        stack_of("strategy=amn", "model=module", "model.target=user_networks.Features")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "says"),
    {
        "": "model.target=package.Class",
        "model.target=user_networks": "package.Class",
        "model.target=user_networks.Nothing": "no such class",
        "model.target=no_such_package.Class": "no module no_such_package",
        "model.target=user_networks.wrong": "makes a int",
        "model.target=user_networks.Mlp": "give it by model.args={name:value}",
        "model.target=user_networks.Counting": "its buffer body.count changes",
        "model.target=user_networks.OwnChance": "draws random numbers",
        "model.target=user_networks.Pair": "returns a tuple",
        "model.target=user_networks.Pictures": "returns (2, 1, 8, 8)",
        "model.target=user_networks.ConvNormDrop dataset.pad=4": "does not take these pictures, 1 x 16 x 16",
        "model.target=user_networks.ConvNormDrop model.args={width:3}": "cannot be made: TypeError",
        "model.target=user_networks.ConvNormDrop model.args=3": "names with values, such as {width:8,depth:2}",
        "model.target=user_networks.ConvNormDrop model.train=nothing": "fits none of the parameters",
        "model.target=user_networks.ConvNormDrop model.train='\"(\"'": "no regular expression",
        "model.target=user_networks.ConvNormDrop model.weights=absent.pt": "cannot be read",
        "model.target=user_networks.ConvNormDrop model.weights=DEFAULT": "name a file",
    }.items(),
)
def test_what_cannot_be_a_network_is_refused(prepared_of, tmp_path, overrides, says):
    with pytest.raises(UsageError) as refusal:
        prepared_of("model=module", *overrides.split())
    assert says in str(refusal.value) and "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["pickle", "tensor", "names", "shape", "torn"])
def test_wrong_files_of_weights_are_refused(prepared_of, tmp_path, content):
    from user_networks import ConvNormDrop

    state, path = ConvNormDrop(10).state_dict(), tmp_path / "weights.pt"
    torch.save(
        {
            "pickle": ConvNormDrop(10),
            "tensor": torch.zeros(3),
            "names": {f"other.{name}": v for name, v in state.items()},
            "shape": state | {"conv.weight": torch.zeros(6, 3, 3, 3)},
            "torn": state,
        }[content],
        path,
    )
    if content == "torn":
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UsageError, match=r"model.weights=.*weights.pt") as refused:
        prepared_of(*CONV, f"model.weights={path}")
    assert ("it holds other things than tensors" in str(refused.value)) == (content == "pickle")
    assert "and 0 more" not in str(refused.value) and "\x1b" not in str(refused.value)


# ---------------------------------------------------------------- libraries


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "squeezenet1_1"])
def test_the_smallest_networks_of_torchvision(stack_of, arch):
    stack = stack_of("model=torchvision", f"model.arch={arch}", "dataset.pad=12", *SHORT, dtype=torch.float32)
    run, _ = stack.learn(stack.initialize(), 0)
    assert run.theta.isfinite().all() and run.state.precision.isfinite().all() and run.state.precision.any()


def test_the_smallest_network_of_timm(stack_of):
    pytest.importorskip("timm", reason="timm is not installed: pip install 'clrun[timm]'")
    stack = stack_of("model=timm", "model.arch=test_efficientnet", "dataset.pad=12", *SHORT, dtype=torch.float32)
    run, _ = stack.learn(stack.initialize(), 0)
    assert run.theta.isfinite().all() and run.state.precision.any()


@pytest.mark.parametrize(
    ("overrides", "says"),
    {
        "model=torchvision": "type model.arch=",
        "model=torchvision model.arch=resnet19": "did you mean resnet1",
        "model=torchvision model.arch=vit_b_16": "Wrong image height",
        "model=torchvision model.arch=resnet18 model.train=layer9": "fits none of the parameters",
    }.items(),
)
def test_wrong_names_of_library_networks_are_refused(prepared_of, overrides, says):
    with pytest.raises(UsageError, match=says):
        prepared_of(*overrides.split())


@pytest.mark.parametrize("strategy", ["packnet", "gpm", "xdg", "amn", "imm"])
def test_what_to_do_about_batch_norm_is_said_of_a_module(prepared_of, strategy):
    with pytest.raises(UsageError, match="use a network with group norm or layer norm in place of batch norm"):
        prepared_of("model=module", "model.target=user_networks.ConvNormDrop", f"strategy={strategy}", "scenario=task")


@pytest.mark.parametrize("channels", ["abc", None, 0, -1, 1.5, True])
def test_channels_are_a_number(channels):
    with pytest.raises(UsageError, match=f"in_chans:{channels} in args"):
        channels_of({"in_chans": channels})
    assert channels_of({"in_chans": 1}) == 1 and channels_of(None) == channels_of({"width": 3}) == 3


def test_the_importance_of_a_linear_network_is_that_of_its_head(stack_of):
    stack = stack_of("model=linear", "strategy=ewc", "tasks=2")
    assert isinstance(stack.strategy, EWC) and list(stack.strategy.net.layout.shapes) == ["head.weight", "head.bias"]
    run, _ = live(stack)
    assert run.state.precision.any()
    assert replace(stack.strategy).net.network.taps == ()
