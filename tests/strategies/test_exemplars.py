"""icarl, wa and bic against their equations, a sample at a time; what is trained on, kept and answered by."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import live
from helpers import module_of, rows_of
from scipy.optimize import minimize
from test_memory_and_replay import SMALL
from test_replay_options import chosen, class_of, herded_by_hand

from clrun.data.batches import StepContext
from clrun.strategies.bic import RIDGE, least_biased
from clrun.strategies.wa import WA
from clrun.system.errors import UsageError

METHODS = ("icarl", "wa", "bic")
OUTPUTS = 10


def rows_held(memory):
    return memory.rows[: memory.held].tolist()


@pytest.mark.parametrize("strategy", METHODS)
def test_a_domain_incremental_stream_has_no_new_outputs(stack_of, strategy):
    with pytest.raises(UsageError, match=r"cannot work with scenario=domain: .* type scenario=class"):
        stack_of(f"strategy={strategy}", "scenario=domain")


@pytest.mark.parametrize("strategy", METHODS)
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_an_epoch_goes_through_the_task_and_the_exemplars(stack_of, strategy, scenario):
    """Each sample of the task once and each exemplar once, but for what bic holds out, which is never trained on."""
    stack = stack_of(f"strategy={strategy}", f"scenario={scenario}", "memory_size=40", "epochs=1", "batch_size=16")
    data, run, ever_held_out = stack.strategy.data, stack.initialize(), set()
    for stage in range(3):
        met = stack.consolidate(run, stack.new_stage(stage))
        own = data.rows(stack.streams[0].train[stage], stage).tolist()
        held_out = set(rows_held(met.state.validation)) if strategy == "bic" else set()
        ever_held_out |= held_out
        (sampler,) = stack.schedule.samplers(stage, "train", [met.state])
        steps = sampler.sample(0, sampler.steps)
        trained = steps.rows[steps.weight > 0].tolist()
        exemplars = rows_held(run.state.past.memory)
        assert sorted(trained) == sorted([*(set(own) - held_out), *exemplars])
        assert not set(trained) & ever_held_out
        run, report = stack.learn(run, stage)
        health = report.health[0]
        assert health["steps"] == -(-len(trained) // 16)
        assert (health["exemplar_share"] > 0) == (stage > 0)
        counts = Counter(class_of(data, row) for row in rows_held(run.state.past.memory))
        assert len(counts) == 2 * (stage + 1)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert sum(counts.values()) == (36 if strategy == "bic" else 40)
        assert not set(rows_held(run.state.past.memory)) & ever_held_out


def second_task(stack):
    """A run that has met its second task, a batch of exemplars and new samples, and what there was before."""
    run, _ = stack.learn(stack.initialize(), 0)
    before = run.theta
    run = stack.consolidate(run, stack.new_stage(1))
    (sampler,) = stack.schedule.samplers(1, "train", [run.state])
    rows, weight, progress, epoch, noise = (v[0] for v in sampler.sample(0, 1))
    when = StepContext(torch.tensor(1), torch.tensor(1), progress, epoch, noise)
    return run, before, stack.strategy.data.batch(stack.tables, rows, weight.double(), when)


def logits_of(stack, theta, batch):
    with torch.no_grad():
        return module_of(stack.strategy, theta)(batch.x)


@pytest.mark.parametrize(("scenario", "active"), [("class", "seen"), ("class", "all"), ("task", "seen")])
def test_icarl_is_its_equation(stack_of, scenario, active):
    """Old outputs are taught by the old network, for old and new samples; the others by the labels. So it is in every
    scenario, also where a sample may only be answered by the outputs of its task."""
    stack = stack_of("strategy=icarl", f"scenario={scenario}", f"active={active}", "memory_size=40", *SMALL)
    run, before, batch = second_task(stack)
    theta = run.theta + 0.1
    loss, aux = stack.strategy.loss(theta, run.state, stack.hp, batch)
    new, old, wanted = logits_of(stack, theta, batch), logits_of(stack, before, batch), 0.0
    for z, teacher, y in zip(new, old, batch.y.tolist(), strict=True):
        for o in range(4 if active == "seen" else OUTPUTS):
            target = teacher[o].sigmoid() if o < 2 else float(o == y)
            g = z[o].sigmoid()
            wanted -= target * g.log() + (1 - target) * (1 - g).log()
    assert loss.item() == pytest.approx(wanted.item() / 12, abs=1e-10)
    assert {0, 1} & set(batch.y.tolist())
    assert {2, 3} & set(batch.y.tolist())
    gaps = [
        teacher.sigmoid() * (teacher.sigmoid().log() - z.sigmoid().log())
        + (1 - teacher.sigmoid()) * ((1 - teacher.sigmoid()).log() - (1 - z.sigmoid()).log())
        for z, teacher in zip(new[:, :2].flatten(), old[:, :2].flatten(), strict=True)
    ]
    assert aux["distillation"].item() == pytest.approx(sum(gaps).item() / 12, abs=1e-10)


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_icarl_answers_by_the_nearest_mean_of_exemplars(stack_of, scenario):
    """Exemplars by the paper's algorithm, with the features after their own task, and means with those of now."""
    stack = stack_of("strategy=icarl", f"scenario={scenario}", "memory_per_class=5", "split.order=fixed")
    data, run, order = stack.strategy.data, stack.initialize(), {}

    def phi(rows):
        with torch.no_grad():
            x = data.images[rows % len(data.images)].double() * data.scale + data.shift
            return F.normalize(module_of(stack.strategy, run.theta)[:-1](x), dim=1)

    for stage in range(2):
        run, report = stack.learn(run, stage)
        pool = stack.pool(stage, "train", torch.float64)
        for label in (2 * stage, 2 * stage + 1):
            mine = pool.rows[data.labels[pool.rows % len(data.images)] == label]
            order[label] = mine[herded_by_hand(phi(mine), 5)]
        assert set(rows_held(run.state.past.memory)) == {row for rows in order.values() for row in rows.tolist()}
        means = torch.stack([F.normalize(phi(rows).mean(0), dim=0) for rows in order.values()])
        assert (run.state.means[: len(means)] - means).abs().max() < 1e-12
        for task in range(stage + 1):
            test = data.rows(stack.streams[0].test[task], task)
            distance = (phi(test)[:, None] - means).norm(dim=-1)
            if scenario == "task":
                distance = distance[:, 2 * task : 2 * task + 2] if stage else distance
                nearest = distance.argmin(1) + (2 * task if stage else 0)
            else:
                nearest = distance.argmin(1)
            right = (nearest == data.labels[test % len(data.images)]).sum()
            assert report.correct[0, task] == right


@pytest.mark.parametrize("strategy", ["wa", "bic"])
@pytest.mark.parametrize("old", [2, 3])
def test_wa_and_bic_train_by_the_same_equation(stack_of, strategy, old):
    """Of five outputs, two or three are old: so many fifths of divergence at temperature 3, the others of cross
    entropy; of bic, with the corrections of an earlier task."""
    classes = {2: "[[0,1],[2,3,4]]", 3: "[[0,1,2],[3,4]]"}[old]
    typed = (f"split.classes={classes}", "temperature=3", "memory_size=40", *SMALL[:-1])
    stack = stack_of(f"strategy={strategy}", "scenario=class", *typed)
    run, before, batch = second_task(stack)
    theta, factor, shift = run.theta + torch.randn_like(run.theta) / 4, torch.ones(5), torch.zeros(5)
    if strategy == "bic":
        factor[:old], shift[:old] = 0.7, -0.3
        alpha, beta = run.state.alpha.clone(), run.state.beta.clone()
        alpha[0], beta[0] = 0.7, -0.3
        run = run._replace(state=run.state._replace(alpha=alpha, beta=beta))
    loss, aux = stack.strategy.loss(theta, run.state, stack.hp, batch)
    ce = kl = 0.0
    for z, teacher, y in zip(logits_of(stack, theta, batch), logits_of(stack, before, batch), batch.y, strict=True):
        z, teacher = (v[:5] * factor + shift for v in (z, teacher))
        ce += z.exp().sum().log() - z[y]
        p, q = ((v[:old] / 3).exp() / (v[:old] / 3).exp().sum() for v in (teacher, z))
        kl += (p * (p.log() - q.log())).sum()
    assert aux["distillation"].item() == pytest.approx(kl.item() / 12, abs=1e-9)
    assert loss.item() == pytest.approx(((5 - old) * ce.item() + old * kl.item()) / 5 / 12, abs=1e-6)


@pytest.mark.parametrize("stream", ["split.classes=[[0],[1,2,3],[4,5]]", "split.slots=4"])
def test_wa_makes_new_weights_as_long_as_old_ones(stack_of, stream):
    """After each task but the first; nothing else of theta changes, and the teacher is the aligned network. A class
    that comes back, as with split.slots=4, keeps its weights and counts among the old ones."""
    stack = stack_of("strategy=wa", "scenario=class", stream)
    data, come, came_back = stack.strategy.data, set(), 0
    run, report = stack.learn(stack.initialize(), 0)
    assert report.health[0]["gamma"] == 1
    for stage in (0, 1, 2):
        rows = stack.pool(stage, "meet", torch.float64).rows
        here = set(stack.tables.label[rows // len(data.images), data.labels[rows % len(data.images)]].tolist())
        old, new = sorted(come), sorted(here - come)
        came_back, come = came_back + len(here & come), come | here
        if stage == 0:
            continue
        run = stack.consolidate(run, stack.new_stage(stage))
        partial = stack.new_stage(stage).next_phase()
        trained, partial = stack.train(run, partial)
        after = stack.consolidate(trained, partial)
        before, aligned = (stack.strategy.net.layout.view(v.theta) for v in (trained, after))
        length = before["head.weight"].norm(dim=1)
        gamma = length[old].mean() / length[new].mean()
        expected = before["head.weight"].clone()
        expected[new] *= gamma
        assert (aligned["head.weight"] - expected).abs().max() < 1e-12
        assert after.state.gamma.item() == pytest.approx(gamma.item())
        assert abs(gamma - 1) > 1e-3
        assert all(torch.equal(aligned[name], before[name]) for name in before if name != "head.weight")
        assert torch.equal(after.state.past.teacher, after.theta)
        run = after
    assert (came_back > 0) == ("slots" in stream)


@pytest.mark.parametrize("case", ["overlapping", "separable", "empty"])
def test_the_correction_is_the_minimum(case):
    """Newton's method against SciPy's, with samples that are not there and outputs that may not answer."""
    draw = np.random.default_rng(0)
    z, y = draw.normal(size=(60, 5)) * 3, draw.integers(0, 4, 60)
    z[:, 2:4] += 4  # new classes are preferred
    if case == "separable":
        z[np.arange(60), y] += 30
    active, own, weight = np.arange(5) < 4, (np.arange(5) // 2) == 1, (draw.random(60) < 0.7).astype(float)
    if case == "empty":
        weight = weight * 0

    def loss(ab):
        v = np.where(own, ab[0] * z + ab[1], z)[:, :4]
        ce = np.log(np.exp(v - v.max(1, keepdims=True)).sum(1)) + v.max(1) - v[np.arange(60), y]
        return (weight @ ce) / max(weight.sum(), 1) + RIDGE / 2 * ((ab[0] - 1) ** 2 + ab[1] ** 2)

    wanted = minimize(loss, [1.0, 0.0], method="BFGS", options={"gtol": 1e-10}).x
    arguments = torch.tensor(z), torch.tensor(y), torch.tensor(active).expand(60, 5), torch.tensor(own)
    found = least_biased(*arguments, torch.tensor(weight))
    assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
    assert loss(found.numpy()) <= loss(wanted) + 1e-12
    if case == "overlapping":
        assert found[0] < 0.6, "the logits say nothing about these labels"


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_bic_leaves_samples_to_train_on(stack_of, share):
    """However large the memory is: of n samples of a class, a share of n is held out at most, but one of two, and none
    where there is one alone."""
    stack = stack_of("strategy=bic", "scenario=class", "memory_size=3000", f"validation_share={share}", "epochs=1")
    pool = stack.pool(0, "meet", torch.float64)
    classes = stack.strategy.data.class_ids(pool.rows)
    first, second = ((classes == c).nonzero()[:, 0] for c in classes.unique())
    for left, held_out in ((1, 0), (2, 1), (7, round(7 * share) or 1), (len(first), round(len(first) * share))):
        weight = torch.zeros_like(pool.weight)
        weight[first[:left]], weight[second] = 1, 1
        _, state = stack.strategy.after_phase(
            "meet", stack.initialize().theta, stack.initialize().state, stack.hp, pool._replace(weight=weight)
        )
        kept = rows_held(state.validation)
        counts = Counter(class_of(stack.strategy.data, row) for row in kept)
        assert len(kept) == len(set(kept)) and set(kept) <= set(pool.rows[weight > 0].tolist())
        assert sorted(counts.values()) == sorted(n for n in (held_out, round(len(second) * share)) if n)


def test_bic_holds_out_a_uniform_draw_of_each_class(stack_of):
    """Of all samples of a class so far, also where it comes back: those with the smallest random numbers."""
    typed = ("memory_size=60", "validation_share=0.3", "split.slots=4")
    stack = stack_of("strategy=bic", "scenario=class", *typed)
    data, run, offered, came_back = stack.strategy.data, stack.initialize(), [], 0
    for stage in range(4):
        classes = {label for _, label, _ in offered}
        pool = stack.pool(stage, "meet", torch.float64)
        for row, u in zip(pool.rows.tolist(), pool.noise[0].tolist(), strict=True):
            label = class_of(data, row)[1]
            came_back += label in classes
            offered.append((row, label, u))
        run = stack.consolidate(run, stack.new_stage(stage))
        assert set(rows_held(run.state.validation)) == chosen(offered, 18)
    assert came_back > 100


def test_bic_answers_with_its_corrections(stack_of):
    """Those of a task stay when later ones come; in the first task there is nothing to correct."""
    stack = stack_of("strategy=bic", "scenario=class", "memory_size=60", "validation_share=0.3", "epochs=3", "lr=0.01")
    run, reports, kept = stack.initialize(), [], []
    for stage in range(3):
        run, report = stack.learn(run, stage)
        reports.append(report.health[0])
        kept.append((run.state.alpha.tolist(), run.state.beta.tolist()))
    assert (reports[0]["alpha"], reports[0]["beta"]) == (1, 0)
    assert [row["held_out"] for row in reports] == [18, 18, 18]
    assert reports[1]["beta"] != 0
    assert kept[2][0][:2] == kept[1][0][:2]
    assert kept[1][0][2:] == [1, 1, 1, 1]
    factor = torch.tensor([kept[2][0][o // 2] for o in range(OUTPUTS)], dtype=torch.float64)
    shift = torch.tensor([kept[2][1][o // 2] for o in range(OUTPUTS)], dtype=torch.float64)
    x = stack.strategy.data.images[:9].double() * stack.strategy.data.scale + stack.strategy.data.shift
    z = module_of(stack.strategy, run.theta)(x)
    mine = stack.strategy.scores(run.theta, run.state, stack.hp, x, torch.zeros(9).long())
    assert (mine - (z * factor + shift)).abs().max() < 1e-12


def test_a_correction_is_that_of_the_tasks_own_outputs(stack_of):
    """alpha and beta of a later task, by SciPy from the raw logits of what is held out and the corrections before."""
    stack = stack_of("strategy=bic", "scenario=class", "memory_size=60", "validation_share=0.3", "epochs=3", "lr=0.01")
    data, run = stack.strategy.data, stack.initialize()
    for stage in range(3):
        run, _ = stack.learn(run, stage)
    rows = torch.tensor(rows_held(run.state.validation))
    task, image = rows // len(data.images), rows % len(data.images)
    y = stack.tables.label[task, data.labels[image]].numpy()
    raw = module_of(stack.strategy, run.theta)(data.images[image].double() * data.scale + data.shift)[:, :6]
    before = np.array([*run.state.alpha[[0, 0, 1, 1]], 1, 1]), np.array([*run.state.beta[[0, 0, 1, 1]], 0, 0])
    z, own = raw.detach().numpy() * before[0] + before[1], np.arange(6) >= 4  # the outputs of the third task

    def loss(ab):
        v = np.where(own, ab[0] * z + ab[1], z)
        ce = np.log(np.exp(v).sum(1)) - v[np.arange(len(y)), y]
        return ce.mean() + RIDGE / 2 * ((ab[0] - 1) ** 2 + ab[1] ** 2)

    wanted = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-16, "maxiter": 2000})
    assert len(y) == 18 and set(y) == set(range(6))
    assert [run.state.alpha[2].item(), run.state.beta[2].item()] == pytest.approx(wanted.x.tolist(), abs=1e-6)
    assert abs(run.state.beta[2]) > 0.01


def test_in_a_task_incremental_stream_a_correction_corrects_nothing(stack_of):
    """As its warning there says: the largest output of a task stays the largest."""
    stack = stack_of("strategy=bic", "scenario=task", "memory_size=60", "validation_share=0.3", "epochs=3", "lr=0.01")
    run, reports = live(stack)
    assert all(row["alpha"] > 0 and row["alpha"] != 1 for row in (report.health[0] for report in reports[1:]))
    data, uncorrected = stack.strategy.data, run.state._replace(alpha=0 * run.state.alpha + 1, beta=0 * run.state.beta)
    for t, test in enumerate(stack.streams[0].test):
        x, tasks = data.images[test].double() * data.scale + data.shift, torch.full((len(test),), t)
        mine, plain = (
            stack.strategy.scores(run.theta, state, stack.hp, x, tasks)[:, stack.tables.active[-1, t]]
            for state in (run.state, uncorrected)
        )
        assert torch.equal(mine.argmax(1), plain.argmax(1))
        assert torch.equal(mine, plain) == (t == 0), "alpha and beta are 1 and 0 in the first task"


@pytest.mark.parametrize("strategy", ["finetune", "ewc", "er_ace", "icarl", "packnet", "imm", "amn", "mas"])
def test_with_a_cosine_head(stack_of, strategy):
    """Methods that read the weights of the head, or measure it sample by sample, work with one without biases."""
    run, reports = live(stack_of(f"strategy={strategy}", "model.head=cosine", "model.widths=[12,8]", "tasks=2"))
    assert run.theta.isfinite().all()
    assert reports[-1].correct.sum() > 0
    with pytest.raises(UsageError, match=r"type model\.head=linear"):
        stack_of("strategy=wa", "model.head=cosine")


def test_a_memory_that_does_nothing_is_noticed(stack_of):
    _, reports = live(stack_of("strategy=wa", "scenario=class"))
    rows = rows_of(reports)
    assert WA.warnings(rows, {"memory_size": 200}) == []
    empty = [row | {"memory_fill": 0} for row in rows]
    assert "no exemplars" in WA.warnings(empty, {"memory_size": 200})[0]
    alone = [row | {"exemplar_share": 0} for row in rows]
    assert "nothing of earlier tasks" in WA.warnings(alone, {"memory_size": 200})[0]
