"""The page of a report: what is in the file, its size, and what is refused; and the page in a real browser."""

import base64
import errno
import io
import json
import re
import shlex
import shutil
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from outcomes import outcome, placed, write_final
from PIL import Image

from clrun.commands import report, watch
from clrun.report import page_confusion
from clrun.report.figures import curve_style
from clrun.report.page_confusion import confusions_of
from clrun.report.page_data import command_of, curve_of, rounded_matrices, style_of
from clrun.report.page_pictures import pictures_of
from clrun.results import misjudged, run_files
from clrun.results.reading import read_table
from clrun.results.tables import cell

pytest.importorskip("plotly")

NASTY = ["<script>alert(1)</script>", "$x$", "a & b"]
ACCURACIES = {"ewc": [6, 9, 8], "finetune": [2, 5, 9], "joint": [9, 9, 9]}


def evaluations(steps: range, tasks: int) -> list[dict[str, float]]:
    """Accuracies within tasks of five steps each."""
    cells = [(step, task) for step in steps for task in range(1, tasks + 1)]
    return [{"step": s, "stage": s // 5 + 1, "eval_task": t, "accuracy": (7 * s * t % 101) / 101} for s, t in cells]


def made(folder: Path, seeds: int = 3) -> Path:
    """Runs of three strategies, whose classes have names that are HTML and LaTeX; ewc fails on seed 1."""
    for strategy, final in ACCURACIES.items():
        for seed in range(seeds):
            correct = np.array([[3, 3, 3], [9, 2, 2], [8, 9, 3], [max(0, k - seed) for k in final]])
            if (strategy, seed) == ("ewc", 1):
                correct[-1] = 0
            pairs = [[after, k, k, k, 7, k] for after in (1, 2, 3) for k in range(3)]
            pairs += [[3, 0, 0, 1, 3 + seed, 5], [2, 1, 1, 2, 3, 6]]
            placed(
                folder, strategy, seed, group=f"{list(ACCURACIES).index(strategy)}000000000", correct=correct,
                confusions=np.array(pairs), class_names=NASTY, warnings=["<b>too weak</b>"],
                over_training=evaluations(range(15), 3),
            )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = made(tmp_path_factory.mktemp("page") / "results $1 <b>")
    for run in folder.glob("runs/ewc/*"):
        misjudged.write(run / misjudged.NAME, [5, 6], np.full((2, 1, 8, 8), 90, np.uint8))
    report.command([str(folder), "--html", "--no-plots"])
    return folder


class Texts(HTMLParser):
    """The elements of a page, and the JSON in it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.data = ""
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href") and value]
        self.in_data = dict(attrs).get("id") == "data"

    def handle_data(self, data):
        if self.names and self.names[-1] == "script" and self.in_data:
            self.data += data


def read_page(path: Path) -> tuple[Texts, dict]:
    parser = Texts()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser, json.loads(parser.data)


def test_one_file_with_all_that_it_needs(results):
    """Three scripts and no address: plotly, the data, the page's own; text of the user's is in the data alone."""
    page, data = read_page(results / "report.html")
    assert page.names.count("script") == 3 and page.sources == []
    assert "alert(1)</script>" not in (results / "report.html").read_text(encoding="utf-8")
    (stream,) = data["streams"]
    assert sorted(stream["classes"]) == sorted(NASTY)
    assert [row["label"] for row in stream["rows"]] == ["ewc", "finetune", "joint"]
    assert [row["bound"] for row in stream["rows"]] == ["", "", "learns all tasks at once"]
    assert len(stream["runs"]) == 9 and all(run["warnings"] == ["<b>too weak</b>"] for run in stream["runs"])
    assert (results / "report.html").stat().st_size < 7e6


def test_numbers_are_those_of_the_files(results):
    _, data = read_page(results / "report.html")
    (stream,) = data["streams"]
    for run, matrix, curve in zip(stream["runs"], stream["matrices"], stream["curves"], strict=True):
        directory = results / run["folder"]
        summary = (directory / "summary.csv").read_text()
        assert run["run"] in summary
        table = read_table(directory / "accuracy_matrix.csv")
        assert np.allclose(np.array(matrix, float)[:, -1], table["average"], atol=1e-4)
        assert np.allclose(np.array(matrix, float)[:, 0], table["task_1"], atol=1e-4)
        assert curve["steps"] == list(range(15)) and len(curve["tasks"]) == 3
    first = dict(zip(stream["measures"], stream["rows"][0]["measures"], strict=True))
    assert first["average_accuracy"][0] == 3
    flat = np.array(stream["confusions"][0]).reshape(-1, 5)
    names = stream["classes"]
    taken = {(names[true], names[predicted]): n for after, _, true, predicted, n in flat.tolist() if after == 3}
    assert taken[NASTY[0], "$x$"] == 3 and taken["$x$", "$x$"] == 7


def test_a_page_elsewhere_links_to_the_runs(results, tmp_path):
    report.command([str(results), "--html", str(tmp_path / "a" / "p.html"), "--no-plots"])
    _, data = read_page(tmp_path / "a" / "p.html")
    assert all((tmp_path / "a" / run["folder"] / "summary.csv").is_file() for run in data["streams"][0]["runs"])


def test_runs_of_an_earlier_version_have_the_confusions_of_their_end(tmp_path):
    made(tmp_path, seeds=2)
    for path in tmp_path.glob("runs/*/*/confusion_over_tasks.csv"):
        path.unlink()
    report.command([str(tmp_path), "--html", "--no-plots"])
    (stream,) = read_page(tmp_path / "report.html")[1]["streams"]
    assert {k for flat in stream["confusions"] for k in flat[::5]} == {3}


def test_a_table_made_by_hand_has_a_page(tmp_path):
    """Without folders of runs there are no matrices; all else is there."""
    head = "strategy,dataset,split,scenario,tasks,model,seed,average_accuracy,lambda,run\n"
    rows = [f"ewc,digits,classes,task,5,mlp,{seed},0.{9 - seed},{lam},\n" for lam in (1, 10, 100) for seed in range(2)]
    (tmp_path / "results.csv").write_text(head + "".join(rows))
    report.command([str(tmp_path), "--html", "--no-plots"])
    (stream,) = read_page(tmp_path / "report.html")[1]["streams"]
    assert stream["swept"] == ["lambda"] and len(stream["runs"]) == 6 and not any(stream["matrices"])


# ---------------------------------------------------------------- the parts


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=ewc", "lambda=400"),
        ("strategy=er", "scenario=class", "memory_size=50", "optimizer=sgd", "optimizer.momentum=0.9", "epochs=2"),
        ("strategy=si", "split=permuted", "tasks=3", "scenario=domain", "model.widths=[20,10]", "seed=4"),
        ("strategy=lwf", "split.classes=[[0,1],[2,3,4]]", "iterations=7", "validation=0.1"),
    ],
    ids=" ".join,
)
def test_the_command_of_a_run_trains_it(prepared_of, overrides):
    prepared = prepared_of(*overrides)
    values = {key: cell(value) for key, value in prepared.settings.values.items()}
    row = {key: np.nan if value is None else value for key, value in values.items()}
    words = shlex.split(command_of(row, list(row)))
    assert words[0] == "clrun"
    assert prepared_of(*[word for word in words[1:] if not word.startswith("outputs=")]).id == prepared.id


def test_every_style_of_the_figures_has_a_name_in_plotly():
    styles = [style_of(i) for i in range(60)]
    assert len({tuple(style.values()) for style in styles[:42]}) == 42
    assert styles[0]["color"] == curve_style(0)["color"]


def test_what_has_no_room_is_thinned_and_said():
    matrices = [np.full((21, 21), 0.5) for _ in range(6)]
    notes: list[str] = []
    kept = rounded_matrices(matrices, [0, 0, 0, 1, 1, 1], notes, room=500)
    assert "too many" in notes[0]
    assert [np.shape(matrix) for matrix in kept] == [(21, 21), *[(21, 1)] * 5]
    assert rounded_matrices(matrices, [0] * 6, [], room=10**6)[5] == matrices[5].tolist()


def test_a_thinned_curve_keeps_the_end_of_every_task(tmp_path):
    made(tmp_path, seeds=1)
    table = read_table(next(tmp_path.glob("runs/ewc/*/accuracy_over_training.csv")))
    assert curve_of(table, 4)["steps"] == [0, 4, 8, 9, 12, 14]


def test_confusions_without_room_are_added_up(tmp_path):
    made(tmp_path, seeds=2)
    folders = sorted(tmp_path.glob("runs/ewc/*"))
    whole = confusions_of(folders, "class", [0, 0], 10**6)
    assert whole.note == "" and len(whole.of_runs) == 2
    rows = confusions_of(folders, "class", [0, 0], 100)
    few = confusions_of(folders, "class", [0, 0], 10)
    assert "added up" in rows.note and "after the last task alone" in few.note
    assert sum(rows.of_rows["0"][4::5]) == sum(sum(run[4::5]) for run in whole.of_runs)
    assert few.of_rows["0"][0::5] == [3, 3]


def test_outputs_of_several_tasks_with_one_name_are_told_apart(tmp_path):
    """In a permuted stream of scenario=class, the 4 of task 1 may be taken for the 4 of task 2, which is wrong."""
    pairs = np.array([[2, 0, 0, 2, 5, 0], [2, 1, 2, 2, 4, 1], [2, 1, 3, 1, 4, 1], [2, 0, 1, 1, 4, 1]])
    write_final(outcome(tmp_path, class_names=["4", "5", "4", "5"], confusions=pairs, confusion=None), plots=False)
    assert confusions_of([tmp_path], "class", [0], 1000).classes == [
        "4 (task 1)",
        "4 (task 2)",
        "5 (task 1)",
        "5 (task 2)",
    ]
    assert confusions_of([tmp_path], "task", [0], 1000).classes == ["4", "5"]
    assert page_confusion.natural("c10") > page_confusion.natural("c9")


def test_the_page_shows_what_was_misjudged(tmp_path):
    """Pictures of the runs' own sheets, each once; a sheet that is damaged is left out, and said."""
    made(tmp_path, seeds=2)
    folders = sorted(tmp_path.glob("runs/ewc/*"))
    pictures = np.arange(2 * 64, dtype=np.uint8).reshape(2, 1, 8, 8)
    misjudged.write(folders[0] / misjudged.NAME, [5, 0], pictures)
    misjudged.write(folders[1] / misjudged.NAME, [5, 9], pictures)
    pairs = np.array([[1, 0, 0, 1, 4, 5], [3, 0, 0, 2, 7, 0], [3, 0, 1, 1, 9, 9]])
    names, place = ["4", "9", "7"], {"4": 0, "7": 1, "9": 2}
    for folder in folders:
        write_confusions(folder, names, pairs)
    tables = [page_confusion.named_pairs(folder, "class") for folder in folders]
    found = pictures_of(folders, [0, 0], tables, place, 10**6)
    # run, tasks learnt, true, predicted, picture: after the last task first, and the same sample once for the row
    assert found.examples == [0, 3, 0, 1, 0, 0, 1, 0, 2, 1] and found.tile == (8, 8)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(found.sheet.partition(",")[2]))))
    assert (sheet[:, :8] == pictures[1, 0]).all() and (sheet[:, 8:16] == pictures[0, 0]).all()
    assert pictures_of(folders, [0, 0], tables, place, 64).examples == [0, 3, 0, 1, 0]
    (folders[0] / misjudged.NAME).write_bytes(b"no picture")
    assert pictures_of(folders, [0, 0], tables, place, 10**6).examples == [1, 1, 0, 2, 0]
    assert pictures_of(folders, [0, 0], tables, place, 0).sheet == ""


def write_confusions(directory, names, pairs):
    run_files.write_progress(outcome(directory, class_names=names, confusions=pairs))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("typed", [".", "page.txt", "results.csv/page.html"])
def test_a_place_that_is_none_is_refused(answer, tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    made(tmp_path, seeds=1)
    (tmp_path / "results.csv").write_text("")
    code, _, err = answer(".", "--html", typed, command=report.command)
    assert code == 2 and "--html" in err and err.count("\n") == 1
    assert not (tmp_path / "report.csv").exists()


def test_without_plotly_the_line_that_installs_it_is_said(answer, tmp_path, monkeypatch):
    made(tmp_path, seeds=1)
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    code, _, err = answer(tmp_path, "--html", command=report.command)
    assert code == 2 and "pip install 'clrun[html]'" in err and not (tmp_path / "report.csv").exists()


def test_a_full_disk_is_one_paragraph(answer, tmp_path, monkeypatch):
    made(tmp_path, seeds=1)
    writing = Path.write_text

    def full(self, *arguments, **options):
        if "report.html" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return writing(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = answer(tmp_path, "--html", "--no-plots", command=report.command)
    assert code == 1 and "Traceback" not in err
    assert "report.html could not be written: No space left" in err.splitlines()[-1]
    assert not [path for path in tmp_path.iterdir() if "report.html" in path.name]


# ---------------------------------------------------------------- many runs, and a browser


@pytest.mark.slow
def test_a_thousand_runs_have_room(tmp_path):
    """200 rows of 5 seeds and 20 tasks, with curves and confusions of 20 classes: at most 20 MB, as issue 15 asks."""
    random, T = np.random.default_rng(0), 20
    for number in range(1000):
        row, seed = divmod(number, 5)
        pairs = [
            [after, t, t, int(p), 3, 0]
            for after in range(1, T + 1)
            for t in range(after)
            for p in random.choice(T, 4, False)
        ]
        one = outcome(tmp_path / "runs" / "ewc" / f"digits-{number}", seed=seed, counts=np.full(T, 100))
        changes = {
            "run": f"{number:010d}", "group": f"{row:010d}", "correct": random.integers(0, 100, (T + 1, T)),
            "confusions": np.array(pairs), "class_names": [f"class number {k}" for k in range(T)], "confusion": None,
            "values": {**one.values, "lambda": float(row), "tasks": T, "seed": seed}, "warnings": ["w" * 300],
            "over_training": evaluations(range(100), T),
        }  # fmt: skip
        write_final(replace(one, **changes), plots=False)
    report.command([str(tmp_path), "--html", "--no-plots"])
    assert (tmp_path / "report.html").stat().st_size < 20e6
    (stream,) = read_page(tmp_path / "report.html")[1]["streams"]
    assert len(stream["runs"]) == 1000 and stream["notes"]


@pytest.mark.slow
def test_a_page_that_is_written_again_keeps_what_was_chosen(results, browser, tmp_path):
    """clrun-watch --html: the browser loads it anew by itself; order, filter, choices and place stay."""
    path = tmp_path / "page.html"
    watch.command([str(results), "--html", str(path), "--once"])
    path.write_text(path.read_text(encoding="utf-8").replace('"every":null', '"every":3'), encoding="utf-8")
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(path.resolve().as_uri())
    before = browser.execute_script(
        f"const one = document.querySelector('#matrices select'); one.selectedIndex = 2; {CHANGED};"
        "document.querySelectorAll('#methods thead button')[1].click(); window.first = true; scrollTo(0, 300);"
        "document.querySelector('#over-tasks .legend [aria-pressed]').click(); return chosen()"
    )
    # a script may meet the page while it is loaded anew, and then says nothing
    after = "return !window.first && typeof chosen === 'function' && scrollY === 300 ? chosen() : null"
    assert WebDriverWait(browser, 30).until(lambda _: browser.execute_script(after)) == before
    assert [entry["message"] for entry in browser.get_log("browser")] == []


CHANGED = "one.dispatchEvent(new Event('change'))"


@pytest.fixture
def browser():
    """A headless Chromium that loads nothing from elsewhere; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no Chromium with its driver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tempfile.mkdtemp()
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update",
        "disable-sync", "no-first-run", f"user-data-dir={profile}", "window-size=1280,900",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.mark.slow
def test_in_a_browser(results, browser, capsys):
    """Opened, sorted, filtered, switched and compared, by mouse and keyboard, at 1280 and 400 pixels; no error."""

    def run(script, *arguments):
        return browser.execute_script(f"return (() => {{ {script} }})()", *arguments)

    def first_column(section):
        return run(
            f"return [...document.querySelectorAll('#{section} tbody th')].map((cell) => cell.textContent.trim())"
        )

    from selenium.webdriver.support.wait import WebDriverWait

    browser.get((results / "report.html").resolve().as_uri())
    assert first_column("methods") == ["joint", "ewc", "finetune"]
    glance = run("return document.querySelector('#glance').innerText")
    assert "ewc: seed 1 of 3" in glance and "Which forgets least for its memory?" in glance
    assert re.search(r"on the others better by [\d.]+( to [\d.]+)? points", glance)
    assert first_column("classes")[0] == "joint" and NASTY[1] in run(
        "return document.querySelector('#classes thead').textContent"
    )
    heading = browser.find_element("xpath", "//*[@id='methods']//th//button[contains(., 'forgetting')]")
    for direction, first in (("ascending", "joint"), ("descending", "finetune")):
        heading.send_keys("\ue007")  # the Enter key
        assert first_column("methods")[0] == first
        assert run(f"return document.querySelectorAll('#methods th[aria-sort={direction}]').length") == 1
    assert "1" in run("return document.querySelector('#methods .bad').textContent")
    search = browser.find_element("css selector", "#methods input")
    search.send_keys("EWC")
    assert first_column("methods") == ["ewc"]
    assert run("return document.querySelector('#methods [role=status]').textContent") == "1 of 3 rows"
    search.clear()
    search.send_keys(" ")
    names = run("return [...document.querySelectorAll('#over-tasks .legend .name')].map((name) => name.textContent)")
    traces = run("return document.querySelector('#over-tasks .chart').data.length")
    run("document.querySelector('#over-tasks .legend [aria-pressed]').click()")
    assert len(names) == 3
    assert run("return document.querySelector('#over-tasks .chart').data.length") == traces - 2
    assert "seed 2" in str(
        run("return document.querySelector('#over-tasks .chart').data.flatMap((trace) => trace.text)")
    )
    text = run("return document.querySelector('#confusion').innerText")
    assert NASTY[0] in text and "$x$" in text
    first, last = (f"document.querySelectorAll('#confusion .controls select')[{k}]" for k in ("0", "4"))
    for select, value in ((first, "0"), (last, NASTY[0])):
        run(f"const one = {select}; one.value = {json.dumps(value)}; {CHANGED}")
    tile = "document.querySelector('#confusion .tile')"
    assert run(f"return {tile}.title") == f"a {NASTY[0]} taken for $x$"
    assert run(f"return getComputedStyle({tile}).backgroundImage").startswith('url("data:image/png;base64,')
    for i, value in enumerate("10"):
        run(f"const one = document.querySelectorAll('#comparison select')[{i}]; one.value = '{value}'; {CHANGED}")
    shown = run("return document.querySelector('#comparison .answer').textContent")
    capsys.readouterr()
    report.command([str(results), "--compare", "finetune", "ewc"])
    numbers = re.findall(r"-?\d+\.\d", capsys.readouterr().out.split("minus")[1].split("n =")[0])
    assert numbers[:3] == re.findall(r"-?\d+\.\d", shown.split("minus")[1].split("n =")[0])[:3]
    for theme in ("dark", "light"):
        run(f"const one = document.getElementById('theme'); one.value = '{theme}'; {CHANGED}")
        assert run("return document.documentElement.dataset.theme") == theme
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    )
    narrow = WebDriverWait(browser, 20).until  # charts follow the window in their own time
    assert narrow(lambda _: run("return document.documentElement.scrollWidth") <= 400)
    browser.execute_cdp_cmd("Page.printToPDF", {})
    assert [entry["message"] for entry in browser.get_log("browser")] == []
