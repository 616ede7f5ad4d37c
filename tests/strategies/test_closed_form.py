"""Heads in closed form: after any split and in any order they are the head of all samples together, to 1e-10.

The joint heads are stated here a second time, in NumPy, from all training samples at once.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import live

from clrun.strategies.fecam import JITTER, FeCAM, definite_factor, inverse
from clrun.strategies.ncm import NCM
from clrun.strategy import lowered, solved
from clrun.system.errors import UsageError

SPLITS = [
    ("tasks=5", "split.order=seed"),
    ("tasks=2", "split.order=fixed"),
    ("split.classes=[[3],[9,0,1],[2,4,5,6,7,8]]",),
    ("tasks=1",),
    ("tasks=5", "split.slots=4"),  # classes come back
    ("split=permuted", "tasks=3", "scenario=domain"),
    ("split=rotated", "tasks=3", "scenario=domain"),
]
COMMON = ("scenario=class", "dataset=digits")


def samples_of(stack):
    """All training samples of a run in float64 with their outputs, and all test samples."""
    data, stream = stack.strategy.data, stack.streams[0]

    def inputs(pools):
        images, tasks = torch.cat(pools), torch.cat([torch.full_like(p, t) for t, p in enumerate(pools)])
        y = stream.tables.label[tasks, data.labels[images]]
        return data.inputs(stack.tables, images, tasks).flatten(1).numpy(), y.numpy()

    return *inputs(stream.train), inputs(stream.test)[0]


def scores_of(stack, run, x):
    """The scores of all outputs as the trained run computes them."""
    x, t = torch.as_tensor(x), torch.zeros(len(x), dtype=torch.long)
    strategy = stack.strategy.eval_mode(run.stats)
    return strategy.scores(run.theta, run.state, stack.hp, x.view(len(x), *stack.strategy.data.images.shape[1:]), t)


def with_images(stack, change):
    """The stack on a copy of its images that `change` has changed in place."""
    data = replace(stack.strategy.data, images=stack.strategy.data.images.clone())
    change(data.images)
    return replace(stack, strategy=replace(stack.strategy, data=data))


def class_means(x, y):
    return np.stack([x[y == c].mean(0) for c in range(10)])


def ncm(x, y, test):
    means = class_means(x, y)
    return -((test[:, None] - means) ** 2).sum(-1) / 2


def within(x, y, means):
    """The covariance within classes."""
    away = x - means[y]
    return away.T @ away / len(x)


def linear_scores(test, means, precision):
    return test @ precision @ means.T - np.einsum("cd,de,ce->c", means, precision, means) / 2


def slda(x, y, test, shrinkage=None):
    means = class_means(x, y)
    covariance, identity = within(x, y, means), np.eye(x.shape[1])
    if shrinkage is not None:
        return linear_scores(test, means, np.linalg.inv((1 - shrinkage) * covariance + shrinkage * identity))
    n, d = x.shape
    trace, square = np.trace(covariance), np.trace(covariance @ covariance)
    rho = min(1, ((1 - 2 / d) * square + trace**2) / ((n + 1 - 2 / d) * (square - trace**2 / d)))
    return linear_scores(test, means, np.linalg.inv((1 - rho) * covariance + rho * trace / d * identity))


def power(x):
    return np.sign(x) * np.sqrt(np.abs(x))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def fecam(x, y, test, shared=False, gammas=(1.0, 1.0)):
    """A class and a sample at a time, as the equations are written."""
    scores, d = np.zeros((len(test), 10)), x.shape[1]
    pooled = within(power(x), y, class_means(power(x), y))
    for c in range(10):
        covariance = pooled if shared else np.cov(power(x[y == c]).T, bias=True)
        off = covariance[~np.eye(d, dtype=bool)].mean()
        ones = np.ones((d, d)) - np.eye(d)
        covariance = covariance + gammas[0] * np.diag(covariance).mean() * np.eye(d) + gammas[1] * off * ones
        deviation = np.sqrt(np.diag(covariance))
        precision = np.linalg.inv(covariance / np.outer(deviation, deviation))
        for i, g in enumerate(power(test)):
            away = unit(g) - unit(power(x[y == c].mean(0)))
            scores[i, c] = -away @ precision @ away / 2
    return scores


def qda(x, y, test, gamma=0.1):
    scores, d, means = np.zeros((len(test), 10)), x.shape[1], class_means(x, y)
    pooled = np.trace(within(x, y, means)) / d
    for c in range(10):
        covariance = np.cov(x[y == c].T, bias=True) + gamma * pooled * np.eye(d)
        away = test - means[c]
        distance = np.einsum("nd,de,ne->n", away, np.linalg.inv(covariance), away)
        scores[:, c] = -distance / 2 - np.linalg.slogdet(covariance)[1] / 2
    return scores


def ridge(x, y, test, strength=0.1):
    return test @ np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ np.eye(10)[y])


JOINT = {
    ("ncm",): ncm,
    ("slda",): slda,
    ("slda", "shrinkage=1e-4"): lambda *given: slda(*given, shrinkage=1e-4),
    ("fecam",): fecam,
    ("fecam", "covariance=shared", "gamma1=2", "gamma2=0.5"): lambda *given: fecam(*given, True, (2, 0.5)),
    ("fecam", "rule=qda", "gamma1=0.1", "tukey=1"): qda,
    ("ranpac", "units=0", "ridge=0.1"): ridge,
}
# One of each method.
METHODS = list(dict.fromkeys(name for name, *_ in JOINT))


def differences(scores):
    """Scores without what all outputs have in common, which no answer depends on."""
    return scores - scores[:, :1]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("strategy", JOINT, ids=" ".join)
def test_it_is_the_head_of_all_samples_together(stack_of, strategy, split):
    name, *knobs = strategy
    stack = stack_of(f"strategy={name}", *knobs, *COMMON, *split, seeds=[3])
    run, _ = live(stack)
    x, y, test = samples_of(stack)
    expected = differences(JOINT[strategy](x, y, test))
    found = differences(scores_of(stack, run, test).numpy())
    assert np.abs(found - expected).max() < 1e-10 * max(1, np.abs(expected).max())


def hidden_of(stack, run, x):
    """The random features of RanPAC."""
    return np.maximum(x @ run.state.projection.numpy(), 0)


@pytest.mark.parametrize("split", SPLITS)
def test_ridge_regression_on_random_features(stack_of, split):
    stack = stack_of("strategy=ranpac", "units=30", "ridge=3", *COMMON, *split)
    run, _ = live(stack)
    x, y, test = samples_of(stack)
    expected = ridge(hidden_of(stack, run, x), y, hidden_of(stack, run, test), 3)
    assert np.abs(scores_of(stack, run, test).numpy() - expected).max() < 1e-10


@pytest.mark.parametrize("tasks", [1, 5])
def test_the_strength_is_the_best_on_training_samples_that_were_held_out(stack_of, tasks):
    """Written out: every fifth sample of each task's random order is predicted from the others of all tasks. A single
    task has more than the 1024 samples whose features are computed at once."""
    stack = stack_of("strategy=ranpac", "units=40", f"tasks={tasks}", *COMMON)
    run, _ = live(stack)
    x, y, _ = samples_of(stack)
    image_of = torch.cat(stack.streams[0].train)
    orders = [
        stack.schedule.shuffled_samples(stage, "train")[0][0] % len(stack.strategy.data.images)
        for stage in range(tasks)
    ]
    held = np.isin(image_of.numpy(), torch.cat([order[::5] for order in orders]).numpy())
    h = hidden_of(stack, run, x)
    assert run.state.held_out.number.sum() == held.sum()
    assert np.abs(run.state.held_out.gram.numpy() - h[held].T @ h[held]).max() < 1e-8
    errors = {}
    for strength in 10.0 ** np.arange(-8, 9):
        predicted = ridge(h[~held], y[~held], h[held], strength)
        errors[strength] = ((predicted - np.eye(10)[y[held]]) ** 2).sum()
    best = min(errors, key=errors.get)
    assert run.state.ridge.item() == pytest.approx(best)
    expected = ridge(h, y, h, best)
    assert np.abs(scores_of(stack, run, x).numpy() - expected).max() < 1e-8


def test_no_test_sample_chooses_the_strength(stack_of):
    stack = stack_of("strategy=ranpac", "units=40", *COMMON)
    chosen = live(stack)[0].state.ridge
    test = torch.cat(stack.streams[0].test)
    stack = with_images(stack, lambda images: images.index_fill_(0, test, 0))
    assert torch.equal(live(stack)[0].state.ridge, chosen)


@pytest.mark.parametrize("strategy", METHODS)
def test_the_network_stays_as_it_starts(stack_of, strategy):
    stack = stack_of(f"strategy={strategy}", *COMMON)
    first = stack.initialize()
    run, reports = live(stack)
    assert torch.equal(run.theta, first.theta)
    assert [report.health[0]["steps"] for report in reports] == [0] * 5


@pytest.mark.parametrize("strategy", METHODS)
def test_the_trunk_is_trained_on_the_first_task_alone(stack_of, strategy):
    stack = stack_of(f"strategy={strategy}", "trunk=first_task", *COMMON)
    run, _ = stack.learn(stack.initialize(), 0)
    later, report = stack.learn(run, 1)
    assert not torch.equal(run.theta, stack.initialize().theta)
    assert torch.equal(later.theta, run.theta)
    assert report.health[0]["steps"] == 0


def test_a_head_on_the_trunk_reads_the_last_hidden_layer(stack_of):
    stack = stack_of("strategy=ncm", "trunk=initial", *COMMON)
    run, _ = live(stack)
    x, y, test = samples_of(stack)
    pieces = {name: v.numpy() for name, v in stack.strategy.net.layout.view(run.theta).items()}
    for layer in ("hidden.0", "hidden.1"):
        x, test = (np.maximum(v @ pieces[f"{layer}.weight"].T + pieces[f"{layer}.bias"], 0) for v in (x, test))
    found = differences(scores_of(stack, run, samples_of(stack)[2]).numpy())
    assert np.abs(found - differences(ncm(x, y, test))).max() < 1e-10


def test_the_network_answers_until_there_is_a_head(stack_of):
    stack = stack_of("strategy=ncm", "trunk=first_task", *COMMON)
    run = stack.initialize()
    x = samples_of(stack)[2][:5]
    logits = stack.strategy.eval_mode(run.stats).net(run.theta, torch.as_tensor(x).view(5, 1, 8, 8))
    assert torch.equal(scores_of(stack, run, x), logits)


def test_outputs_without_a_sample_come_last():
    scores = torch.tensor([[1.0, -5.0, 9.0]])
    assert lowered(scores, torch.tensor([True, True, False])).tolist() == [[1, -5, -6]]
    assert lowered(scores, torch.tensor([False] * 3)).tolist() == [[0, 0, 0]]


def test_a_matrix_that_cannot_be_solved_raises_nothing():
    good, bad = torch.eye(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    both = solved(torch.stack([good, bad, good * torch.nan]), torch.ones(3, 2, 1))
    assert torch.equal(both[0], torch.ones(2, 1))
    assert both[1:].isnan().all()


def test_a_linear_network_has_no_trunk(prepared_of):
    with pytest.raises(UsageError, match="type trunk=none or model=mlp"):
        prepared_of("strategy=ncm", "model=linear", "trunk=initial")
    assert prepared_of("strategy=ncm", "model=linear")


C, D = 10, 64
SIZES = {
    "ncm": 2 * C * D + 2 * C,
    "slda": D * D + 2 * C * D + 2 * C + 1,
    "fecam": 2 * C * D * D + 3 * C * D + 3 * C,
    "fecam covariance=shared": 2 * D * D + 3 * C * D + 3 * C,
    "ranpac units=30": 2 * 30 * 30 + 3 * 30 * C + 3 * C + 1 + D * 30,
    "ranpac units=30 ridge=1": 30 * 30 + 2 * 30 * C + 3 * C + 1 + D * 30,
}


@pytest.mark.parametrize("typed", SIZES)
def test_state_is_what_is_stated(stack_of, typed):
    """In doubles; the random weights have the type of the network, here double."""
    stack = stack_of(*f"strategy={typed}".split(), *COMMON)
    assert stack.state_bytes(stack.initialize()) == 8 * SIZES[typed]


@pytest.mark.parametrize("typed", ["rule=qda gamma2=0.5", "rule=qda covariance=shared", "gamma1=1 gamma2=1.5"])
def test_settings_that_contradict_each_other(prepared_of, typed):
    with pytest.raises(UsageError, match=r"gamma2|covariance"):
        prepared_of("strategy=fecam", *typed.split())


@pytest.mark.parametrize("strategy", METHODS)
def test_samples_that_do_not_differ(stack_of, strategy):
    """Without any variance there is still a finite head."""
    stack = with_images(stack_of(f"strategy={strategy}", *COMMON), lambda images: images.fill_(3))
    run, reports = live(stack)
    assert scores_of(stack, run, samples_of(stack)[2][:4]).isfinite().all()
    assert reports[-1].divergence == [None]


class Drawing(NCM):
    """NCM that keeps what it draws."""

    class State(NCM.State):
        pass

    def draws(self):
        return {"numbers": torch.randn(self.data.tasks), "order": torch.randperm(self.data.tasks)}

    def init_drawn(self, theta, drawn):
        return {"sums": self.init(theta).sums, "drawn": drawn}


def test_what_a_strategy_draws_follows_from_the_seed(stack_of):
    together = stack_of("strategy=ncm", seeds=[0, 1], strategy=Drawing).initialize().state["drawn"]
    alone = [stack_of("strategy=ncm", seeds=[seed], strategy=Drawing).initialize().state["drawn"] for seed in (0, 1)]
    for name in ("numbers", "order"):
        assert torch.equal(together[name], torch.stack([one[name] for one in alone]))
        assert not torch.equal(alone[0][name], alone[1][name])
    assert together["numbers"].dtype == torch.float64 and together["order"].dtype == torch.long


def test_a_stage_without_steps_whose_weights_are_no_numbers_has_diverged(stack_of):
    stack = stack_of("strategy=ncm")
    run = stack.initialize()
    _, report = stack.learn(run._replace(theta=run.theta * torch.nan), 0)
    assert report.divergence[0].diverged and report.divergence[0].step == 0
    assert stack.learn(run, 0)[1].divergence == [None]


def test_a_finished_run_answers_without_its_data(prepared_of):
    from clrun.runs.answering import answering, network_in
    from clrun.runs.train import train_run

    prepared = prepared_of("strategy=ncm", *COMMON, "pictures=false", "device=cpu")
    train_run(prepared, quiet=True)
    module = answering(network_in(prepared.directory), 0)
    images = prepared.images
    test = prepared.stream.test[0]
    predicted = torch.tensor(module.answers)[module(images.x[test]).argmax(-1)]
    y = prepared.stream.tables.label[0, images.y[test]]
    assert (predicted == y).double().mean() > 0.8


def test_stages_without_steps_need_no_batch_that_can_be_normalised(prepared_of):
    small = ("model=resnet18", "model.width=1", "model.norm=batch", "batch_size=1", "scenario=class")
    assert prepared_of("strategy=ncm", *small)
    with pytest.raises(UsageError, match="batch of one sample"):
        prepared_of("strategy=finetune", *small)


def test_replaced_classes_keep_their_fields(stack_of):
    strategy = stack_of("strategy=ncm").strategy
    assert replace(strategy, trunk="initial").feature_count == 8
    assert strategy.feature_count == 64


def test_fecam_of_features_with_a_constant_sum_does_not_answer_by_rounding():
    """With gamma1 = gamma2 their matrices have no inverse. A little on the diagonal gives them one that is far from
    rounding; matrices that have an inverse are left as they are."""
    shares = torch.distributions.Dirichlet(torch.tensor([2.0, 1.0, 3.0, 1.5], dtype=torch.float64))
    torch.manual_seed(0)
    covariance = shares.sample((200,)).T.cov()[None]
    hp = FeCAM.Hyper(torch.tensor(1.0), torch.tensor(1.0))
    singular = FeCAM.correlations(covariance, hp)
    assert np.linalg.eigvalsh(singular[0].numpy()).min() < 1e-12
    wanted = singular + JITTER * torch.eye(4)
    factor = definite_factor(torch.cat([singular, torch.eye(4, dtype=torch.float64)[None]]))
    assert (factor @ factor.mT - torch.cat([wanted, torch.eye(4)[None]])).abs().max() < 1e-14
    nudged = singular * (1 + 1e-14 * torch.randn(1, 4, 4, dtype=torch.float64).triu().mT)
    x = torch.randn(4, dtype=torch.float64)
    answers = [x @ inverse(definite_factor(v))[0] @ x for v in (singular, (nudged + nudged.mT) / 2)]
    assert answers[0].item() == pytest.approx(answers[1].item(), rel=1e-6)
