"""The plots of a run, drawn from its CSV files."""

import numpy as np
import pytest
from matplotlib.text import Text
from outcomes import CORRECT

from clrun.results import run_files, tables


@pytest.mark.parametrize("tasks", [1, 3, 30])
def test_pictures(tmp_path, tasks):
    """Drawn from the CSVs alone, for few tasks and many, also of a run that diverged in its last task."""
    from PIL import Image

    from clrun.results import plots

    accuracy = np.random.default_rng(0).random((tasks + 1, tasks))
    accuracy[-1] = np.nan if tasks == 3 else 0.5
    run_files.write_table(tmp_path / "accuracy_matrix.csv", tables.matrix_table(accuracy))
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


def test_heat_map_shows_the_numbers_of_few_tasks(tmp_path):
    from clrun.results import plots

    few = plots.matrix_figure(tables.matrix_table(np.array(CORRECT[3]) / 10))
    assert [text.get_text() for text in few.axes[0].texts][:4] == ["10.0", "20.0", "30.0", "90.0"]
    many = plots.matrix_figure(tables.matrix_table(np.full((14, 13), 0.5)))
    assert not many.axes[0].texts


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
