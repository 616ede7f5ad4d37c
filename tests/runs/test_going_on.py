"""`init_from`: a run goes on from a finished one, and equals one run that was never interrupted."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import CPU, slow_but
from interrupting import SHORT_BLOCKS, InterruptingProgress
from torch.utils._pytree import tree_leaves, tree_map

from clrun.report.runs import guessing_accuracy
from clrun.runs import checkpoint, network_file
from clrun.runs.answering import answering
from clrun.runs.build import build
from clrun.runs.going_on import begun
from clrun.runs.train import train_run, train_runs
from clrun.sweep.plan import stackable
from clrun.system.errors import UsageError
from clrun.system.paths import CONF

SMALL = ("device=cpu", "pictures=false", "iterations=20", "model.widths=[12,8]", "scenario=class")
KEPT = "keep_checkpoint=true"
WHOLE = "split.classes=[[0,1,2],[3,4],[5]]"


@pytest.fixture
def trained(prepared_of):
    def train(*overrides):
        prepared = prepared_of(*overrides)
        train_run(prepared, quiet=True)
        return prepared

    return train


def tensors_of(prepared):
    """What a run has learnt; not what it has measured, of which the first run has a part."""
    tensors = checkpoint.read(prepared.directory, prepared.id).tensors
    return {name: v for name, v in tensors.items() if not name.startswith(("outcome.", "confusions"))}


def table(prepared, name):
    return pd.read_csv(prepared.directory / name)


EQUAL = {
    "finetune": (),
    "ewc": ("lambda=100",),
    "finetune average": ("average=ema",),
    "si": ("c=0.5",),
    "mas": ("lambda=1",),
    "lwf": ("lambda=1",),
    "imm": (),
    "er": ("memory_size=30",),
    "der": ("memory_size=30",),
    "derpp": ("memory_size=30",),
    "agem": ("memory_size=30",),
    "cumulative": (),
    "ncm": (),
    "slda": (),
    "icarl": ("memory_size=30",),
    "icarl average": ("memory_size=30", "average=ema"),
    "wa average": ("memory_size=30", "average=ema"),
    "imm average": ("average=ema",),
    "wa": ("memory_size=30",),
    "bic": ("memory_size=30",),
    "mir": ("memory_size=30",),
    "er_ace": ("memory_size=30",),
    "fdr": ("memory_size=30",),
    "dgr": ("generator_units=10", "latent=3"),
    "generative_classifier": ("autoencoder_units=10", "latent=3", "importance_samples=3"),
    "rwalk": (),
    "xdg": (),
    "gpm": ("samples=40",),
    "l2_init": (),
    "shrink_perturb": (),
    "upgd": (),
    "cbp": ("replacement=0.05", "maturity=5"),
    "fecam": (),
    "ranpac": ("units=30",),
}

BY_TASK = {"xdg"}  # must know the task at test time

# Those that test_answers_by_masks_stay is about, in place of the equality.
MASKED = {"hat", "packnet", "amn"}

# Those that never go on from a state, and what their refusal says.
NEVER = {
    "joint": "strategy=cumulative",
    "scratch": "leave it out",
    "separate": "leave it out",
    "gdumb": "leave it out",
    "gem": "divided among the tasks of one run",
}


def test_every_strategy_is_equal_or_refused():
    """A new strategy is entered above: in EQUAL, or with `goes_on = False` in NEVER."""
    known = {path.stem for path in (CONF / "strategy").glob("*.yaml")}
    equal = {name.split()[0] for name in EQUAL}
    assert known == equal | MASKED | {*NEVER}
    assert not equal & {*NEVER} and not MASKED & (equal | {*NEVER})


# One of each kind of state that is carried on; all others with -m slow.
FAST = {"finetune", "ewc", "si", "derpp", "agem", "icarl", "bic", "dgr", "ranpac", "xdg"}
FAST |= {"finetune average", "icarl average"}


@pytest.mark.parametrize("strategy", slow_but(EQUAL, FAST.__contains__))
def test_it_equals_one_run(trained, strategy):
    """Task 1 in one run, tasks 2 and 3 in another: the bytes of one run of three tasks, but for where samples lie."""
    same = (*SMALL, KEPT, f"strategy={strategy.split()[0]}", *EQUAL[strategy], "seed=3")
    tasks = ("[0,1,2]", "[3,4]", "[5]")
    if strategy in BY_TASK:
        same, tasks = (*same[: len(SMALL) - 1], *same[len(SMALL) :], "scenario=task"), ("[0,1,2]", "[3,4]", "[5,6]")
    whole_split = f"split.classes=[{','.join(tasks)}]"
    whole = trained(*same, whole_split)
    first = trained(*same, whole_split, "first_tasks=1")
    rest = trained(*same, f"split.classes=[{','.join(tasks[1:])}]", f"init_from={first.directory}")
    assert rest.stream.names == whole.stream.names
    expected, found = tensors_of(whole), tensors_of(rest)
    assert expected.keys() == found.keys()
    for name, v in expected.items():
        if not name.endswith("rows"):
            assert torch.allclose(found[name].double(), v.double(), rtol=0, atol=1e-6), name
    mine, theirs = table(rest, "accuracy_matrix.csv"), table(whole, "accuracy_matrix.csv")
    pd.testing.assert_frame_equal(mine.iloc[1:], theirs.iloc[1:])
    assert mine.iloc[0, 1:].isna().all()


def test_a_first_average_is_that_of_the_weights_that_are_gone_on_from(trained, prepared_of):
    """Where the earlier run had none: what meets the first task is then what answers."""
    same = (*SMALL, "strategy=icarl", "memory_size=30")
    first = trained(*same, "split.classes=[[0,1],[2,3]]", KEPT)
    run = prepared_of(*same, "split.classes=[[4,5]]", "average=ema", f"init_from={first.directory}")
    stack = build([run], device=CPU)
    start = begun(stack, [run])
    assert torch.equal(start.theta, start.average.theta)
    after, report = stack.learn(start, stack.learnt)
    assert torch.equal(after.theta, after.average.theta)
    assert report.health[0]["average_distance"] > 0


def said(prepared):
    return str(table(prepared, "summary.csv").iloc[0]["warnings"])


def test_a_run_without_steps_is_not_accused_of_its_average(trained):
    """What it answers with is the average of the run before, so that average=ema did something."""
    same = (*SMALL, KEPT, "strategy=ncm", "trunk=first_task", "average=ema")
    first = trained(*same, "split.classes=[[0,1],[2,3]]")
    rest = trained(*same, "split.classes=[[4,5],[6,7]]", f"init_from={first.directory}")
    assert "average" not in said(first) and "average" not in said(rest)


@pytest.mark.parametrize(
    ("strategy", "idle", "warning"),
    [
        ("rwalk", ("lambda=1e-30",), "this is finetuning"),
        ("lwf", ("lambda=1e-30",), "this is finetuning"),
        ("mir", ("virtual_lr=0",), "a virtual_lr above 0"),
        ("wa", ("lr=1e-30",), "never passed 1e-12 of the loss"),
    ],
)
def test_one_task_that_is_added_is_no_first_one(trained, strategy, idle, warning):
    """A method that does nothing in it says so, as where the whole stream is one run; one that works is not accused."""
    same = (*SMALL, KEPT, f"strategy={strategy}")
    first = trained(*same, "split.classes=[[0,1],[2,3]]")
    rest = trained(*same, *idle, "split.classes=[[4,5]]", f"init_from={first.directory}")
    assert warning in said(rest)
    works = trained(*same, "split.classes=[[4,5]]", f"init_from={first.directory}")
    assert warning not in said(works)


@pytest.mark.parametrize("strategy", ["icarl", "wa", "bic"])
@pytest.mark.parametrize(("classes", "named"), [("[[0,1]]", "task 3"), ("[[2,3],[0,1]]", "the tasks 3, 4")])
def test_a_class_that_comes_back_in_another_run_is_no_new_one(trained, strategy, classes, named):
    same = (*SMALL, KEPT, f"strategy={strategy}")
    first = trained(*same, "split.classes=[[0,1],[2,3]]")
    rest = trained(*same, f"split.classes={classes}", f"init_from={first.directory}")
    assert f"no class of {named} was new" in said(rest)


@pytest.mark.parametrize("there", [True, False], ids=["in the data", "not in the data"])
def test_classes_of_the_run_before_are_missed_in_the_memory(trained, tmp_path, there):
    """Also where one task alone comes, and where the data have none of them; not if the memory begins anew."""
    rng, names = np.random.default_rng(0), np.array([*"abcdef"])

    def arrays(name, classes):
        y = np.repeat(np.arange(len(classes)), 20)
        x = rng.normal(size=(len(y), 6)).astype("float32")
        file = tmp_path / name
        np.savez(file, x_train=x, y_train=y, x_test=x, y_test=y, names=names[classes])
        return "dataset=arrays", f"dataset.file={file}", "dataset.normalize=false"

    same = (*SMALL, KEPT, "strategy=er", "memory_size=2")
    first = trained(*same, *arrays("first.npz", [0, 1, 2, 3]), "split.classes=[[a,b],[c,d]]")
    data = arrays("rest.npz", [0, 1, 2, 3, 4, 5] if there else [4, 5])
    rest = trained(*same, *data, "split.classes=[[e,f]]", f"init_from={first.directory}")
    held = table(rest, "health.csv")["memory_classes"].iloc[-1]
    assert f"memory_size=2: after all tasks the memory held no sample of {6 - held:g} of the 6 classes" in said(rest)
    shutil.copy(first.directory / network_file.NAME, tmp_path)
    weights = trained(*same, *data, "split.classes=[[e,f]]", f"init_from={tmp_path / network_file.NAME}")
    assert "held no sample" not in said(weights)


@pytest.mark.parametrize("strategy", ["hat", "packnet", "amn"])
def test_answers_by_masks_stay(trained, strategy):
    """What cannot be forgotten within a run is not forgotten over two of them."""
    same = ("device=cpu", "pictures=false", "iterations=60", "scenario=task", f"strategy={strategy}", KEPT)
    first = trained(*same, "split.classes=[[0,1],[2,3]]")
    rest = trained(*same, "split.classes=[[4,5]]", f"init_from={first.directory}")
    before, after = (table(run, "accuracy_matrix.csv") for run in (first, rest))
    seen = ["task_1", "task_2"]
    assert before.loc[2, seen].tolist() == after.loc[2, seen].tolist()
    if strategy != "amn":
        assert after.loc[2, seen].tolist() == after.loc[3, seen].tolist()
    assert after.loc[3, "task_3"] > 0.6


@pytest.mark.parametrize("strategy", ["er", "derpp", "agem"])
def test_a_memory_holds_the_same_samples(trained, strategy):
    same = (*SMALL, KEPT, f"strategy={strategy}", "memory_size=30")
    whole = trained(*same, WHOLE)
    first = trained(*same, WHOLE, "first_tasks=1")
    rest = trained(*same, "split.classes=[[3,4],[5]]", f"init_from={first.directory}")

    def samples(prepared):
        rows = next(v for name, v in tensors_of(prepared).items() if name.endswith("rows"))
        N = len(prepared.images.x)
        return [(r // N, prepared.images.x[r % N].flatten().tolist()) for r in rows.tolist()]

    assert samples(whole) == samples(rest)
    assert rest.images.carried == 30 and rest.images.fingerprint == whole.images.fingerprint
    assert table(rest, "summary.csv")["sample_count"][0] == len(whole.images.x)


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
@pytest.mark.parametrize("state", [True, False])
def test_outputs_grow_and_what_was_learnt_is_kept(trained, prepared_of, scenario, state):
    same = (*SMALL[:-1], f"scenario={scenario}", "strategy=ewc", f"keep_checkpoint={'true' if state else 'auto'}")
    first = trained(*same, "split.classes=[[0,1],[2,3]]")
    rest = prepared_of(*same, "split.classes=[[4,5],[6,7]]", f"init_from={first.directory}")
    assert rest.stream.learnt == 2 and len(rest.stream.train) == 4
    names = {"domain": ["0/2/4/6", "1/3/5/7"]}.get(scenario, [*"01234567"])
    assert rest.stream.names == names
    train_run(rest, quiet=True)
    before, after = (table(run, "accuracy_matrix.csv") for run in (first, rest))
    seen = ["task_1", "task_2"]
    assert before.loc[2, seen].tolist() == after.loc[2, seen].tolist(), "at the start it answers as the first run did"
    forgetting = table(rest, "forgetting.csv")
    assert forgetting["accuracy_when_learned"][:2].tolist() == after.loc[2, seen].tolist()
    summary = table(rest, "summary.csv")
    assert np.isclose(summary["average_accuracy"][0], after.iloc[-1, 1:5].mean())
    assert ("alone" in rest.origin.sentence) != state
    assert ("knows nothing of the tasks before" in str(summary["warnings"][0])) != state
    if state:
        part = tensors_of(first)["run.own.precision"]
        assert rest.origin.tensors["run.own.precision"].equal(part) and part.sum() > 0


def test_a_folder_grows_by_a_class(trained, prepared_of, tmp_path):
    """Cats and dogs, then the folder has deer, whose name comes before theirs: by default one task of what is new."""
    from PIL import Image

    random = np.random.default_rng(0)

    def draw(name, shade, folder="pets"):
        for part in ("train", "test"):
            for i in range(8):
                path = tmp_path / folder / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(shade, shade + 60, (8, 8, 3), dtype=np.uint8)).save(path)

    same = (*SMALL, "dataset=image_folder", "dataset.size=8", "batch_size=4", "strategy=er", "memory_size=6", KEPT)
    draw("cat", 0)
    draw("dog", 180)
    first = trained(*same, f"dataset.root={tmp_path / 'pets'}", "tasks=1")
    shutil.copytree(tmp_path / "pets", tmp_path / "grown")  # one process reads a folder once
    draw("bear", 90, "grown")
    rest = trained(*same, f"dataset.root={tmp_path / 'grown'}", f"init_from={first.directory}")
    assert rest.stream.names == ["cat", "dog", "bear"] and rest.images.classes == ("bear", "cat", "dog")
    assert table(rest, "tasks.csv").to_numpy().tolist() == [[1, "cat"], [1, "dog"], [2, "bear"]]
    assert [len(pool) for pool in rest.stream.test] == [16, 8]
    old = rest.images.x[-6:], [rest.images.classes[k] for k in rest.images.y[-6:].tolist()]
    assert {*old[1]} <= {"cat", "dog"}
    assert torch.equal(old[0], first.images.x[tensors_of(first)["run.own.memory.rows"].unique()])


def test_a_folder_of_the_new_class_alone(trained, tmp_path):
    """Old tasks have no samples: they are not measured and do not count; the memory has its samples all the same."""
    random = np.random.default_rng(0)

    def save(name, classes, y0):
        x = random.normal(0, 1, (60, 5)).astype("float32") + 3 * (np.arange(60) % len(classes) + y0)[:, None]
        y = np.arange(60) % len(classes)
        parts = {"x_train": x[:40], "y_train": y[:40], "x_test": x[40:], "y_test": y[40:], "names": np.array(classes)}
        np.savez(tmp_path / name, **parts)
        return "dataset=arrays", f"dataset.file={tmp_path / name}"

    same = (*SMALL, "strategy=er", "memory_size=10", "batch_size=8", KEPT, "tasks=1")
    first = trained(*same, *save("old.npz", ["a", "b"], 0))
    rest = trained(*same, *save("new.npz", ["c", "d"], 2), f"init_from={first.directory}", "evaluate_every=5")
    matrix, summary = table(rest, "accuracy_matrix.csv"), table(rest, "summary.csv").iloc[0]
    assert matrix["task_1"].isna().all()
    assert summary["average_accuracy"] == matrix["task_2"].iloc[-1] == matrix["average"].iloc[-1]
    assert rest.stream.names == ["a", "b", "c", "d"] and rest.images.classes == ("c", "d", "a", "b")
    assert guessing_accuracy(rest.directory) == pytest.approx(rest.chance)
    origin = rest.origin.network.input
    assert torch.equal(origin["scale"], (1 / first.images.moments[1]).float())


def test_it_resumes_and_is_another_run(trained, prepared_of):
    same = (*SMALL, KEPT, "strategy=ewc", "lambda=10")
    first, other = (trained(*same, "split.classes=[[0,1]]", f"seed={s}") for s in (0, 1))
    assert (
        prepared_of(*same, "split.classes=[[2,3]]").id
        != prepared_of(*same, "split.classes=[[2,3]]", f"init_from={first.directory}").id
    )
    add = (*same, "split.classes=[[2,3],[4]]")
    runs = [prepared_of(*add, f"init_from={run.directory}") for run in (first, other)]
    assert runs[0].id != runs[1].id
    assert runs[0].id == prepared_of(*add, f"init_from={first.directory / 'network.safetensors'}").id
    train_run(runs[0], quiet=True)
    whole = tensors_of(runs[0])
    files = {name: (runs[0].directory / name).read_bytes() for name in ("accuracy_matrix.csv", "forgetting.csv")}
    shutil.rmtree(runs[0].directory)
    with pytest.raises(KeyboardInterrupt):
        train_runs(runs[:1], progress=InterruptingProgress(6), trainer=SHORT_BLOCKS)
    assert (runs[0].directory / checkpoint.NAME).is_file()
    train_run(runs[0], quiet=True)
    assert all(torch.equal(tensors_of(runs[0])[name], v) for name, v in whole.items())
    assert files == {name: (runs[0].directory / name).read_bytes() for name in files}


@pytest.mark.parametrize("typed", [("split=permuted", "scenario=task"), ("split=permuted", "scenario=class")])
def test_guessing_in_a_report_is_that_of_the_run(trained, typed):
    same = (*SMALL[:-1], KEPT, "strategy=ewc", *typed)
    first = trained(*same, "tasks=2")
    for more in (("tasks=1",), ("tasks=3", "first_tasks=2")):
        run = trained(*same, *more, f"init_from={first.directory}")
        assert guessing_accuracy(run.directory) == pytest.approx(run.chance)


@pytest.mark.parametrize("other", ["features.size=8", "features.normalize=half"])
def test_features_are_made_as_they_were_there(trained, prepared_of, cache_home, other):
    made = ("features=module", "features.target=user_networks.Features", "features.normalize=none")
    typed = tuple(text for text in made if text.partition("=")[0] != other.partition("=")[0])
    first = trained(*SMALL, *made, "strategy=finetune", "split.classes=[[0,1]]")
    more = ("strategy=finetune", "split.classes=[[2,3]]", f"init_from={first.directory}")
    assert prepared_of(*SMALL, *made, *more).stream.learnt == 1
    with pytest.raises(UsageError, match=rf"were made with {other.partition('=')[0]}="):
        prepared_of(*SMALL, *typed, *more, other)


def test_groups_and_streams(trained, prepared_of):
    """Seeds that go on from runs of their own seed are one row of a report; runs of one seed that go on from different
    runs are two; what was learnt before is part of the stream, by whichever strategy it was learnt."""
    same = (*SMALL, KEPT, "strategy=ewc")
    first, other = (trained(*same, "split.classes=[[0,1]]", f"seed={s}") for s in (0, 1))
    by_er = trained(*SMALL, KEPT, "strategy=er", "split.classes=[[0,1]]", "seed=0")
    longer = trained(*same, "split.classes=[[0,1]]", "seed=0", "batch_size=7")
    shorter = trained(*same, "split.classes=[[0,1],[5,6]]", "seed=0")

    def hashes(run, *typed):
        goes_on = prepared_of(*same, "split.classes=[[2,3]]", *typed, f"init_from={run.directory}")
        settings, stream = goes_on.settings, goes_on.stream_digest
        return settings.group("data"), settings.setup("data"), stream

    groups, setups, streams = zip(
        hashes(first, "seed=0"), hashes(other, "seed=1"), hashes(other, "seed=0"), hashes(by_er, "seed=0"),
        hashes(shorter, "seed=0"), hashes(longer, "seed=0"), strict=True,
    )  # fmt: skip
    assert groups[0] == groups[1] and len(set(groups[1:])) == 5
    assert len(set(setups[:4])) == 1 and len({setups[0], *setups[4:]}) == 3
    assert len({*streams[:4], streams[5]}) == 1 and streams[4] != streams[0], "however it was learnt"
    assert prepared_of(*same, "split.classes=[[2,3]]").stream_digest not in streams


def test_stacked_runs_equal_the_runs_alone(trained, prepared_of):
    same = (*SMALL, KEPT, "strategy=derpp", "memory_size=20", "batch_size=16")
    first = trained(*same, "split.classes=[[0,1]]")
    runs = [prepared_of(*same, "split.classes=[[2,3]]", f"init_from={first.directory}", f"seed={s}") for s in (1, 2)]
    assert len(stackable(runs)) == 1
    stack = build(runs, device=CPU)
    state, _ = stack.learn(begun(stack, runs), stack.learnt)
    for r, run in enumerate(runs):
        alone = build([run], device=CPU)
        one, _ = alone.learn(begun(alone, [run]), alone.learnt)
        of_stack = tree_map(lambda v, r=r: v[r], state)
        for a, b in zip(tree_leaves(of_stack), tree_leaves(one), strict=True):
            assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", ["cnn", "resnet18", "module"])
@pytest.mark.parametrize("strategy", ["ewc", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lwf", "er"))])
def test_every_network(trained, model, strategy):
    """Convolutions, batch norm and dropout: the first task in one run and the second in another, as in one run."""
    nets = {
        "cnn": ("model=cnn", "model.width=2"),
        "resnet18": ("model=resnet18", "model.width=2", "model.norm=batch", "dataset.pad=4"),
        "module": ("model=module", "model.target=user_networks.ConvNormDrop"),
    }
    budget = ("iterations=6", "batch_size=16", "fisher_samples=20") if strategy == "ewc" else ("iterations=6",)
    same = ("device=cpu", "pictures=false", "scenario=class", KEPT, f"strategy={strategy}", *nets[model], *budget)
    whole = trained(*same, "split.classes=[[0,1],[2,3]]")
    first = trained(*same, "split.classes=[[0,1],[2,3]]", "first_tasks=1")
    rest = trained(*same, "split.classes=[[2,3]]", f"init_from={first.directory}")
    found = tensors_of(rest)
    for name, v in tensors_of(whole).items():
        if not name.endswith("rows"):
            assert torch.allclose(found[name].double(), v.double(), rtol=0, atol=1e-6), name


@pytest.mark.parametrize("split", ["permuted", "rotated"])
def test_tasks_of_all_classes(trained, split):
    same = (*SMALL[:-1], KEPT, "strategy=ewc", f"split={split}", "scenario=domain")
    whole, first = trained(*same, "tasks=3"), trained(*same, "tasks=3", "first_tasks=1")
    rest = trained(*same, "tasks=2", f"init_from={first.directory}")
    assert all(torch.equal(a, b) for a, b in zip(rest.stream.tables, whole.stream.tables, strict=True))
    expected, found = tensors_of(whole), tensors_of(rest)
    assert all(torch.allclose(found[name].double(), v.double(), rtol=0, atol=1e-6) for name, v in expected.items())


def test_a_third_run_goes_on_from_the_second(trained):
    same = (*SMALL, KEPT, "strategy=er", "memory_size=20")
    first = trained(*same, "split.classes=[[0,1]]")
    second = trained(*same, "split.classes=[[2]]", f"init_from={first.directory}")
    third = trained(*same, "split.classes=[[3]]", f"init_from={second.directory}")
    assert third.stream.names == ["0", "1", "2", "3"] and third.stream.learnt == 2
    rows = tensors_of(third)["run.own.memory.rows"] % len(third.images.x)
    assert {third.images.classes[k] for k in third.images.y[rows].tolist()} == {"0", "1", "2", "3"}
    network = network_file.read(third.directory / network_file.NAME)
    assert [*network.labels] == [{"0": 0, "1": 1}, {"2": 2}, {"3": 3}]
    x = third.images.x[third.stream.test[0][:5]]
    with torch.no_grad():
        assert answering(network, 0)(x).shape == (5, 4)


REFUSED = {
    "nowhere": (("init_from=nowhere",), "there is no such folder"),
    "scenario": (("scenario=task", "split.classes=[[2,3]]"), "type scenario=class"),
    "split": (("split=permuted",), "type split=classes"),
    "domains": (("split=domains",), "states no domains"),
    "model": (("model.widths=[12,9]", "split.classes=[[2,3]]"), r"type model=mlp model.widths=\[12,8\]"),
    "size": (("dataset.pad=1", "split.classes=[[2,3]]"), "dataset.pad"),
    "masks": (("strategy=packnet", "task_id_at_test=true", "split.classes=[[2,3]]"), "answers by more than weights"),
    "unknown": (("split.classes=[[cat]]",), "cat"),
    "twice": (("split.classes=[[2],[2]]",), "listed twice"),
    "no new": (("tasks=4",), "do not divide into 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(trained, prepared_of, tmp_path, case):
    overrides, says = REFUSED[case]
    first = trained(*SMALL, "split.classes=[[0,1,4,5,6]]", "strategy=er", KEPT)
    typed = {
        text.partition("=")[0]: text for text in (*SMALL, "strategy=er", f"init_from={first.directory}", *overrides)
    }
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=says) as caught:
        prepared_of(*typed.values())
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("strategy", NEVER)
def test_a_strategy_that_never_goes_on_is_refused(trained, prepared_of, tmp_path, strategy):
    scenario = "task" if strategy == "separate" else "class"
    same = (*SMALL[:-1], KEPT, f"scenario={scenario}", f"strategy={strategy}")
    first = trained(*same, "split.classes=[[0,1]]")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=NEVER[strategy]) as caught:
        prepared_of(*same, "split.classes=[[2,3]]", f"init_from={first.directory}")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_another_memory_is_refused(trained, prepared_of):
    same = (*SMALL, KEPT, "strategy=er", "split.classes=[[0,1]]")
    first = trained(*same, "memory_size=20")
    add = (*SMALL, KEPT, "strategy=er", "split.classes=[[2]]", f"init_from={first.directory}")
    for size in (10, 30):
        with pytest.raises(UsageError, match="memory_size"):
            prepared_of(*add, f"memory_size={size}")
