"""The plots of a run, drawn from its CSV files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from outcomes import CORRECT, outcome, write_final

from clrun.results import run_files, tables


@pytest.mark.parametrize("tasks", [1, 3, 30])
def test_pictures(tmp_path, tasks):
    """Drawn from the CSVs alone, for few tasks and many, also of a run that diverged in its last task."""
    from PIL import Image

    from clrun.results import plots

    correct = np.random.default_rng(0).integers(0, 100, (tasks + 1, tasks))
    correct[-1] = -1 if tasks == 3 else 50
    run_files.write_table(tmp_path / "accuracy_matrix.csv", tables.matrix_table(correct, np.full(tasks, 100)))
    plots.draw(tmp_path)
    for name in ("accuracy_matrix.png", "accuracy_over_tasks.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 300 and len(picture.convert("RGB").getcolors(10**6)) > 20
            assert "Software" not in picture.info
    over_tasks = (tmp_path / "accuracy_over_tasks.png").read_bytes()
    (tmp_path / "accuracy_over_training.csv").write_text(
        "run,seed,step,stage,eval_task,accuracy\na,0,0,0,1,0.1\na,0,1,1,1,0.5\na,0,9,1,1,0.9\n"
    )
    plots.draw(tmp_path)
    assert (tmp_path / "accuracy_over_tasks.png").read_bytes() != over_tasks


def test_the_plots_of_a_run_say_what_it_is(tmp_path):
    """Title and class names, also such as $ and characters of other scripts; a folder without config.yaml has none."""
    from clrun.results import plots

    made = outcome(tmp_path, task_classes=[["cat", "$x$"], ["猫" * 30]])
    write_final(made, plots=False)
    assert all(not figure.texts for figure in plots.figures(tmp_path).values())
    groups = {group: {"name": name} for group, name in (("dataset", "pets"), ("split", "classes"), ("model", "mlp"))}
    config = {**groups, "strategy": "ewc", "lambda": 400.0, "online": False, "tasks": 3, "scenario": "task", "seed": 7}
    run_files.write_config(tmp_path, config)
    drawn = plots.figures(tmp_path)
    for figure in drawn.values():
        (title,) = [text.get_text() for text in figure.texts]
        assert title.splitlines()[0] == "ewc lambda=400"
        assert " ".join(title.split()[2:]) == "pets, classes, 3 tasks, scenario task · mlp · seed 7"
    labels = [label.get_text() for label in drawn["accuracy_matrix"].axes[0].get_xticklabels()]
    assert labels == ["1\ncat, $x$", f"2\n{'猫' * 7}…", "3"]
    legend = [text.get_text() for text in drawn["accuracy_over_tasks"].axes[0].get_legend().texts]
    assert legend == ["task 1: cat, $x$", f"task 2: {'猫' * 17}…", "task 3", "average"]


@pytest.mark.parametrize("shown", ["tasks", "training"])
def test_lines_that_lie_on_each_other_are_told_apart(shown):
    """Seven equal lines are at seven heights, with seven markers and more than one kind of dashes; a lone one stays."""
    from clrun.results import plots

    tasks = 8
    values = np.full((tasks + 1, tasks), 100)
    values[:, -1] = 40
    if shown == "tasks":
        figure = plots.tasks_figure(tables.matrix_table(values, np.full(tasks, 100)))
    else:
        cells = [(s, s, t + 1, values[s, t] / 100) for s in range(tasks + 1) for t in range(tasks)]
        figure = plots.training_figure(pd.DataFrame(cells, columns=["step", "stage", "eval_task", "accuracy"]))
    curves = [line for line in figure.axes[0].lines if line.get_marker() not in ("", "None", None)]
    ends = [line.get_transform().transform((8, line.get_ydata()[-1]))[1] for line in curves]
    pixels = figure.dpi / 72
    assert len(curves) == tasks and all(abs(a - b) > 2 * pixels for k, a in enumerate(ends) for b in ends[:k])
    assert max(ends[:6]) - min(ends[:6]) < 16 * pixels
    assert ends[-1] == pytest.approx(figure.axes[0].transData.transform((8, 40))[1])
    assert len({(line.get_marker(), line.get_linestyle()) for line in curves}) == tasks
    assert "side by side" in figure.axes[0].get_xlabel()


def test_heat_map_shows_the_numbers_of_few_tasks(tmp_path):
    from clrun.results import plots

    few = plots.matrix_figure(tables.matrix_table(np.array(CORRECT[3]), np.full(3, 10)))
    assert [text.get_text() for text in few.axes[0].texts][:4] == ["10.0", "20.0", "30.0", "90.0"]
    many = plots.matrix_figure(tables.matrix_table(np.full((14, 13), 5), np.full(13, 10)))
    assert not many.axes[0].texts


def confusions(names, tasks=3):
    """The rows of confusion_over_tasks.csv where, after each task, every class is taken for itself and for the next."""
    pairs = [(k, (k + step) % len(names), 30 + 40 * (step == 0)) for k in range(len(names)) for step in (0, 1)]
    found = [[t, 0, true, predicted, n, 0] for t in range(1, tasks + 1) for true, predicted, n in pairs]
    return tables.confusion_over_tasks_table(outcome(Path(), tasks, class_names=names, confusions=np.array(found)))


@pytest.mark.parametrize("names", [["$x$", "<b>", "猫"], ["a" * 50, "b", "c"], [str(k) for k in range(100)]])
def test_what_was_taken_for_what_is_drawn(tmp_path, names):
    """Names stand as they are or cut, numbers in percent where classes are few, and earlier tasks beside it."""
    from clrun.results import plots

    figure = plots.confusion_figure(confusions(names))
    last, earlier = figure.axes
    few = len(names) == 3
    assert [text.get_text() for text in last.texts] == (["70", "30", "70", "30", "30", "70"] if few else [])
    assert [text.get_text() for text in earlier.texts] == ["after task 1", "after task 2"]
    labels = [label.get_text() for label in last.get_yticklabels()]
    assert labels[0] == (names[0] if len(names[0]) <= 16 else f"{'a' * 15}…") and len(labels) <= 30
    plots.save(figure, tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 5000


def test_stages_for_which_there_is_no_room_are_said():
    from clrun.results import plots

    one = confusions(["a", "b"], tasks=1)
    many, few = (pd.concat([one.assign(after_task=k) for k in range(1, n)]) for n in (21, 10))
    said = [text.get_text() for text in plots.confusion_figure(many).texts]
    assert said == ["8 of 19 earlier stages, for want of room; all are in confusion_over_tasks.csv"]
    assert not plots.confusion_figure(few).texts


def test_one_task_and_one_class_are_drawn(tmp_path):
    from clrun.results import plots

    one = confusions(["a", "b"], tasks=1)
    assert len(plots.confusion_figure(one).axes) == 1
    assert len(plots.confusion_figure(one[one["true_output"] == one["predicted_output"]][:1]).axes) == 1


@pytest.mark.parametrize("name", ["$", "a$b", "$x^{", "a_b", "100%", "{}", "\\frac{1}{2}", "$1 and $2", "~&#"])
def test_any_text_can_be_drawn_as_it_is(tmp_path, name):
    """As a title, a label of an axis and in a legend: nothing is read as a formula, and nothing crashes."""
    from clrun.results import plots

    figure, axes = plots.canvas(3, 2)
    axes.plot([0, 1], [0, 1], label=f"task {name}")
    axes.set_title(name)
    axes.set_xlabel(name)
    axes.set_xticks([0, 1], [name, name])
    axes.legend()
    figure.suptitle(name)
    plots.save(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0
    assert not any(text.get_parse_math() for text in figure.findobj(Text))
