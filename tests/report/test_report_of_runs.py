"""The pictures of a report, most of them of real runs, and real runs that are there twice."""

import io
import itertools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import summaries
from results_by_hand import by_hand

from clrun.commands import report
from clrun.config import composition
from clrun.report import figures
from clrun.report.point_names import name_points
from clrun.report.rows import Row, rows_of
from clrun.report.runs import completed, guessing_accuracy, read, with_derived
from clrun.results import plots, run_files
from clrun.runs import prepare, train

TINY = ("iterations=3", "model.widths=[8]", "device=cpu")


@pytest.fixture(scope="module")
def six_runs(tmp_path_factory) -> Path:
    """Of finetune, joint and ewc at three strengths, one of them with two seeds."""
    outputs = tmp_path_factory.mktemp("outputs")
    for options in ("strategy=finetune", "strategy=joint", *(f"lambda={x}" for x in (0, 10, 1000))):
        for seed in (0, 1) if options == "lambda=10" else (0,):
            train.train_run(
                prepare.prepare(composition.compose(*TINY, f"seed={seed}", options, f"outputs={outputs}")), quiet=True
            )
    return outputs


@pytest.fixture
def trained(six_runs, tmp_path) -> Path:
    """A folder of its own with six real runs."""
    shutil.copytree(six_runs / "runs", tmp_path / "runs")
    return tmp_path


def test_pictures_of_real_runs(trained):
    report.command([str(trained)])
    names = {"first_task", "average_accuracy", "matrices", "accuracy_against_lambda", "accuracy_against_cost"}
    assert {path.stem for path in (trained / "report").iterdir()} == names | {"cost_over_tasks"}
    drawn = figures.figure_data(trained, rows_of(read(trained)))
    assert drawn.references["chance"] == 0.5 and set(drawn.references) == {"joint", "finetune", "chance"}
    (axes,) = figures.knob_figure(drawn, "lambda").axes
    curve = next(line for line in axes.lines if line.get_label() == "ewc")
    assert curve.get_xdata().tolist() == [0, 10, 1000] and axes.get_xscale() == "symlog"
    found = {row.keys["lambda"]: row["average_accuracy"].mean for row in drawn.rows if row.strategy == "ewc"}
    assert curve.get_ydata() == pytest.approx([100 * found[x] for x in (0, 10, 1000)])
    levels = [line for line in axes.lines if figures.is_reference(line.get_label())]
    assert [line.get_ydata()[0] for line in levels] == pytest.approx(
        [100 * value for value in drawn.references.values()]
    )


@pytest.mark.parametrize("chance, label, seen", [(0.5, "chance (50.0, below)", False), (0.93, "chance", True)])
def test_guessing_does_not_press_the_curves_together(chance, label, seen):
    figure, axes = plots.canvas(4, 3)
    axes.plot([1, 2], [97, 99])
    figures.draw_references(axes, {"joint": 0.995, "finetune": 0.95, "chance": chance})
    told = [line.get_label() for line in axes.lines[1:]]
    assert told == ["joint's level", "finetune's level", label]
    low, high = axes.get_ylim()
    assert low < 95 and high > 99.5 and (low < 100 * chance) == seen
    assert figures.finish(figure, axes).legends[0].get_texts()[-1].get_text() == label


def test_names_beside_points_cover_no_point_and_no_other_name():
    """Of two points at one place both have their names; one in a crowd that leaves no room has none."""
    figure, axes = plots.canvas(5, 4)
    points = [(0, 0, "a"), (1, 1, "the first"), (1, 1, "the second"), (2, 2, "$x$")]
    axes.scatter([x for x, _, _ in points], [y for _, y, _ in points])
    figure.draw_without_rendering()
    crowd = [(1.5, 0.5, f"name {k}") for k in range(40)]
    name_points(axes, points + crowd)
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert {name for _, _, name in points} <= {text.get_text() for text in axes.texts}
    assert 1 < len(axes.texts) - len(points) < 10
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    pixels = axes.transData.transform([(x, y) for x, y, _ in points])
    assert not any(box.contains(*pixel) for box in boxes for pixel in pixels)


def test_joint_is_said_to_learn_all_at_once(trained):
    drawn = figures.figures(figures.figure_data(trained, rows_of(read(trained))))
    for name in ("first_task", "average_accuracy", "accuracy_against_cost", "cost_over_tasks"):
        (label,) = [text.get_text() for text in drawn[name].legends[0].texts if text.get_text().startswith("joint,")]
        assert "all at once" in label


def test_several_streams_have_a_folder_each(trained, prepared_of):
    train.train_run(prepared_of(*TINY, "scenario=class"), quiet=True)
    report.command([str(trained)])
    names = sorted(path.name.rpartition("-")[0] for path in (trained / "report").iterdir())
    assert names == ["digits-classes-class-5tasks", "digits-classes-task-5tasks"]


def test_the_first_tasks_curve_is_the_mean_of_its_column(trained):
    drawn = figures.figure_data(trained, [row for row in rows_of(read(trained)) if len(row.done) == 2])
    (axes,) = figures.curves_figure(drawn, "task_1", "accuracy of task 1", {}).axes
    (matrices,) = drawn.matrices.values()
    expected = [100 * np.mean([m["task_1"][k] for m in matrices]) for k in range(1, 6)]
    assert axes.lines[0].get_ydata() == pytest.approx(expected) and len(axes.collections) == 1


def test_the_cost_over_the_tasks_is_what_the_tables_add_up_to(trained):
    drawn = figures.figure_data(trained, rows_of(read(trained)))
    (axes,) = figures.cost_over_tasks_figure(drawn).axes
    (row,) = [row for row in drawn.rows if len(row.done) == 2]
    curve = next(line for line in axes.lines if line.get_label() == row.label)
    tables = [pd.read_csv(next(trained.glob(f"runs/*/*-{run}/costs.csv"))) for run in row.done["run"]]
    until = [[t.loc[:k, ["train_seconds", "consolidate_seconds"]].to_numpy().sum() for t in tables] for k in range(6)]
    assert curve.get_xdata().tolist() == list(range(6)) and curve.get_ydata() == pytest.approx(np.mean(until, 1))
    assert curve.get_ydata()[-1] == pytest.approx(row["total_seconds"].mean)
    ends = [line.get_ydata()[-1] for line in axes.lines]
    assert ends == sorted(ends, reverse=True), "the legend is in the order of the curves' ends"


@pytest.fixture
def many() -> pd.DataFrame:
    """More rows than a picture can hold, with long labels."""
    one = by_hand().assign(device="cpu")
    groups = [one[one.group == "e100"].assign(group=f"g{i}", **{"lambda": 10.0**-i, "online": i}) for i in range(30)]
    runs = pd.concat([*groups, one[one.group.isin(["fine", "top"])]])
    return with_derived(completed(runs.assign(run=[f"r{i}" for i in range(len(runs))]).reset_index(drop=True)))


def test_everything_lies_on_the_canvas(many, trained, tmp_path):
    """Legends and titles too, of many rows with long labels."""
    few, more = rows_of(read(trained)), rows_of(many)
    said = {"x": "y" * 60}
    long = [
        Row(r.stream, r.group, r.keys | said, r.stream_keys, [*r.label_keys, "x"], r.runs.assign(**said)) for r in few
    ]
    for rows, folder in ((few, trained), (long, trained), (more, tmp_path)):
        for name, figure in figures.figures(figures.figure_data(folder, rows)).items():
            figure.savefig(io.BytesIO())
            whole = figure.bbox
            for part in [*figure.legends, *(a for a in figure.axes if a.get_visible()), figure._suptitle]:
                box = part.get_tightbbox(figure.canvas.get_renderer())
                assert whole.x0 - 1 <= box.x0 and box.x1 <= whole.x1 + 1, (name, part)
                assert whole.y0 - 1 <= box.y0 and box.y1 <= whole.y1 + 1, (name, part)


def test_rows_that_are_too_many_are_said_to_be_left_out(many, tmp_path):
    drawn = figures.figure_data(tmp_path, rows_of(many))
    assert len(drawn.rows) == figures.CURVES == 21 and "the first 21 of 32 rows" in drawn.title
    parts = ("color", "linestyle", "marker")
    for two in itertools.combinations(parts, 2):  # without colours on grey paper, and without dashes where points are
        looks = [tuple(look[part] for part in two) for look in drawn.styles.values()]
        assert len(set(looks)) == len(looks), two


@pytest.mark.parametrize(
    "options, expected",
    [
        (("scenario=class",), 0.1),
        (("scenario=domain",), 0.5),
        (("scenario=task",), 0.5),
        (("split=permuted", "scenario=task"), 0.1),
        (("scenario=class", "first_tasks=2"), 0.25),
        (("scenario=class", "first_tasks=2", "active=all"), 0.1),
        (("split=permuted", "scenario=class", "tasks=3", "first_tasks=2"), 0.05),
    ],
)
def test_chance_is_what_the_run_itself_says(prepared_of, tmp_path, options, expected):
    prepared = prepared_of("iterations=1", "model.widths=[4]", "device=cpu", "strategy=finetune", *options)
    train.train_run(prepared, quiet=True)
    assert guessing_accuracy(prepared.directory) == pytest.approx(prepared.chance) == pytest.approx(expected)


@pytest.mark.parametrize("by_hand", [False, True])
def test_rows_that_are_there_twice_count_once(trained, by_hand):
    """A table that was joined from two computers, without folders: n is the number of seeds, and it is said."""
    once, said = read(trained), []
    table = run_files.read_summary(trained / "results.csv")
    table = table.drop(columns=["group", "stream", "setup"]).assign(run=None) if by_hand else table
    shutil.rmtree(trained / "runs")
    run_files.write_table(trained / "results.csv", pd.concat([table, table]))
    runs = read(trained, say=said.append)
    counts = [[row["average_accuracy"].n for row in rows_of(some)] for some in (runs, once)]
    assert counts[0] == counts[1] and len(runs) == len(once) == 6
    assert len(said) == 1 and "6 rows" in said[0] and "line 8, 9" in said[0]


def test_a_copied_folder_is_no_other_seed(trained, capsys):
    """In the table and in --compare, which is told in one sentence."""
    report.command([str(trained), "--no-plots"])
    before = (trained / "report.csv").read_bytes()
    capsys.readouterr()
    for directory in [path.parent for path in summaries(outputs=trained)]:
        shutil.copytree(directory, directory.with_name(f"{directory.name}.bak"))
    report.command([str(trained), "--no-plots"])
    assert (trained / "report.csv").read_bytes() == before
    assert capsys.readouterr().err.count("A run counts once") == 1
