"""clrun-tune: what it may choose from, what it chooses by, and how it goes on."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import MadeUpCards, hold, python_path, summaries
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_docs import PAGES, blocks, needs_checkout

from clrun.commands import run, tune
from clrun.config import catalog
from clrun.results import searched_runs
from clrun.results.reading import BeingTrained, UnreadableFile
from clrun.runs import prepare, train
from clrun.system import locks
from clrun.system.atomic_files import Unguarded
from clrun.system.errors import UsageError
from clrun.system.paths import CONF
from clrun.tune import search, space
from clrun.tune.question import SEARCH_KEYS, Question, read

pytest.importorskip("optuna")
SHORT = ("iterations=4", "model.widths=[8]", "tasks=2", "device=cpu", "plots=false")
SEARCH = ("strategy=ewc", "scenario=domain", "lambda=log(1,1e6)", "lr=log(1e-4,1e-1)", *SHORT)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", python_path())


@pytest.fixture
def clrun_tune(monkeypatch, capfd):
    """clrun_tune("strategy=ewc", ...) -> exit code, standard output, standard error; trained in this process."""

    def answer(*arguments: str, workers: int = 1) -> tuple[int, str, str]:
        stated = [] if any(text.startswith("workers=") for text in arguments) else [f"workers={workers}"]
        monkeypatch.setattr(sys, "argv", ["clrun-tune", *arguments, *stated])
        with pytest.raises(SystemExit) as caught:
            tune.main()
        return caught.value.code, *capfd.readouterr()

    return answer


def trials(outputs: str = "outputs") -> pd.DataFrame:
    (path,) = Path(outputs).glob("tune/*/trials.csv")
    return pd.read_csv(path)


def command_in(out: str) -> str:
    """The winner's."""
    return re.search(r"^  (clrun .*)$", out, re.M)[1]


# ---------------------------------------------------------------- what it chooses by


def test_the_winner_has_the_best_validation_accuracy_and_its_command_runs(clrun_tune, monkeypatch):
    code, out, _ = clrun_tune(*SEARCH, "trials=5", "seeds=2", "tune_tasks=1")
    assert code == 0
    table = trials()
    assert len(table) == 5 and (table.status == "done").all()
    assert len(list(Path("outputs").glob("runs/ewc/*/"))) == 10
    assert len(searched_runs.read(Path("outputs"))) == 10  # which a report leaves out
    best = table.loc[table.validation_accuracy.idxmax()]
    typed = command_in(out)
    assert f"lambda={best['lambda']:g}" in typed and f"lr={best.lr:g}" in typed
    assert "first_tasks" not in typed and "validation" not in typed and "'seed=range(0,2)'" in typed
    assert "after the first 1 of 2 tasks, the mean over 2 seeds. No test number was read." in out
    monkeypatch.setattr(sys, "argv", shlex.split(typed))
    with pytest.raises(SystemExit) as caught:
        run.cli()
    assert caught.value.code == 0
    whole = [path.parent for path in summaries() if "first_tasks" not in path.parts[-2]]
    assert len(whole) == 2 and all("task_2" in pd.read_csv(one / "accuracy_matrix.csv") for one in whole)


def test_scores_are_the_means_of_the_runs(clrun_tune):
    assert clrun_tune(*SEARCH, "trials=2", "seeds=2")[0] == 0
    for row in trials().itertuples():
        runs = Path("outputs").glob(f"runs/ewc/*lambda={row._4:g}-*/validation_matrix.csv")
        last = [pd.read_csv(path).iloc[-1] for path in runs]
        assert len(last) == 2
        assert row.validation_accuracy == pytest.approx(np.mean([(one.task_1 + one.task_2) / 2 for one in last]))


def write_pictures(root: Path, exchanged: bool) -> None:
    """Write 40 training and 20 test pictures of each of four classes; with `exchanged`, the test pictures of a lie in
    the folder of b and those of c in the folder of d, and the other way round."""
    noise = np.random.default_rng(0)
    for number, name in enumerate("abcd"):
        for part, count in (("train", 40), ("test", 20)):
            folder = root / part / ("badc"[number] if exchanged and part == "test" else name)
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(noise.normal(100 + 20 * number, 60, (8, 8)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


def test_test_accuracy_changes_nothing(clrun_tune):
    """The same search where whatever is right on the test samples is wrong, and the other way round: the test pictures
    of the two classes of each task have changed places."""
    for outputs, exchanged in (("straight", False), ("reversed", True)):
        write_pictures(Path("pictures", outputs), exchanged)
        data = ("dataset=image_folder", f"dataset.root=pictures/{outputs}", "dataset.size=8")
        typed = (*SEARCH, *data, "split.classes=[[a,b],[c,d]]", "batch_size=16", "trials=4", f"outputs={outputs}")
        code, _, err = clrun_tune(*typed)
        assert code == 0, err

    def measured(outputs):
        rows = {path.parent: pd.read_csv(path) for path in summaries(outputs=outputs)}
        folders = sorted(rows, key=lambda folder: rows[folder]["lambda"].item())
        return [pd.read_csv(folder / "accuracy_matrix.csv").iloc[-1, -1] for folder in folders]

    assert np.allclose(np.add(measured("straight"), measured("reversed")), 1)
    assert trials("straight").equals(trials("reversed")) and len(set(trials("straight").validation_accuracy)) > 1


OPENED: list[str] | None = None  # files that this process opens, while a list


def listen(event, arguments):
    if event == "open" and OPENED is not None and isinstance(arguments[0], str | os.PathLike):
        OPENED.append(os.path.abspath(arguments[0]))


def test_one_file_of_a_run_is_read(clrun_tune, monkeypatch):
    """The workers write all files of a run; the process that chooses opens one, in which no test number stands."""
    sys.addaudithook(listen)  # for good: Python takes none back
    monkeypatch.setattr(sys.modules[__name__], "OPENED", [])
    code, _, _ = clrun_tune(*SEARCH, "trials=4", "seeds=2", "at_once=2", workers=2)
    opened = set(OPENED)
    monkeypatch.setattr(sys.modules[__name__], "OPENED", None)
    of_runs = {Path(path).name for path in opened if Path("outputs/runs").absolute() in Path(path).parents}
    assert code == 0 and of_runs == {"validation_matrix.csv"}


def test_the_score_of_a_diverged_run_is_none(tmp_path, prepared_of):
    diverged = prepared_of(*SHORT, "strategy=finetune", "optimizer=sgd", "lr=1e30")
    train.train_run(diverged, quiet=True)
    begin = "after_task,task_1,task_2,average\n0,.5,.5,.5\n1,.5,.5,.5\n"
    (tmp_path / "validation_matrix.csv").write_text(f"{begin}2,.25,.75,.5\n")
    assert search.validation_accuracy(tmp_path) == 0.5
    (tmp_path / "validation_matrix.csv").write_text(f"{begin}2,,,\n")
    shutil.copy(diverged.directory / "summary.csv", tmp_path)
    assert search.validation_accuracy(tmp_path) is None


def test_a_run_that_is_trained_again_has_no_score_yet(prepared_of, neighbour):
    """rerun=true writes its tables beside the summary.csv of the earlier training, which did not diverge."""
    run = prepared_of(*SHORT, "strategy=finetune", "validation=0.1")
    train.train_run(run, quiet=True)
    path = run.directory / "validation_matrix.csv"
    whole = search.validation_accuracy(run.directory)
    path.write_text(re.sub(r"^2,.*$", "2,,,,", path.read_text(), flags=re.M))
    with pytest.raises(UnreadableFile, match="it has no accuracy after the last task"):  # the process was killed
        search.validation_accuracy(run.directory)
    hold(run.directory, neighbour)
    with pytest.raises(BeingTrained, match=f"process {neighbour.pid} .*is training this run again"):
        search.validation_accuracy(run.directory)
    assert 0 < whole < 1


def test_a_search_that_another_process_has_taken_over_writes_nothing_more(clrun_tune, monkeypatch):
    asked = search.Search.prepared

    def slept(self, trial):
        """Stand still while another process takes the search over."""
        path = self.folder / locks.NAME
        path.write_text(json.dumps(json.loads(path.read_text()) | {"token": "another"}))
        journal.append((self.folder / "journal.log").read_bytes())
        return asked(self, trial)

    journal: list[bytes] = []
    monkeypatch.setattr(search.Search, "prepared", slept)
    code, _, err = clrun_tune(*SEARCH, "trials=1")
    (folder,) = Path("outputs/tune").glob("*/")
    assert code == 1 and "another one took the search over" in err and "Traceback" not in err
    assert (folder / "journal.log").read_bytes() == journal[-1] and not (folder / "trials.csv").exists()


def test_a_diverged_trial_is_never_chosen(clrun_tune):
    typed = ("strategy=finetune", "optimizer=sgd", "lr=0.001,1e30", *SHORT)
    code, out, _ = clrun_tune(*typed)
    assert code == 0 and "lr=1e+30: diverged" in out and "lr=0.001" in command_in(out)
    assert trials().status.tolist() == ["done", "diverged"] and trials().validation_accuracy.isna().tolist() == [0, 1]
    code, out, err = clrun_tune(*typed[:2], "lr=1e29,1e30", *SHORT, "outputs=bad")
    assert code == 1 and "all trials diverged" in err and "clrun " not in out


# ---------------------------------------------------------------- going on


def test_more_trials_later_are_the_same_trials(clrun_tune):
    assert clrun_tune(*SEARCH, "trials=13", "at_once=2", "outputs=once")[0] == 0
    assert clrun_tune(*SEARCH, "trials=4", "at_once=2", "outputs=twice")[0] == 0
    code, out, _ = clrun_tune(*SEARCH, "trials=13", "at_once=2", "outputs=twice")
    assert code == 0 and "Trials 5, 6 of 13" in out and "Trials 4" not in out
    assert trials("once").equals(trials("twice"))
    assert len(set(trials("once")["lambda"])) == 13
    before = written(Path("once/runs"))
    code, out, _ = clrun_tune(*SEARCH, "trials=13", "outputs=once")
    assert code == 0 and written(Path("once/runs")) == before and "to train" not in out and command_in(out)


def written(folder: Path) -> dict[Path, int]:
    """Return when each file and folder below a folder was last changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_another_seed_draws_other_trials(clrun_tune):
    for seed in ("0", "1"):
        assert clrun_tune(*SEARCH, "trials=1", f"sampler_seed={seed}", f"outputs=seed{seed}")[0] == 0
    assert clrun_tune(*SEARCH, "trials=1", "sampler=random", "outputs=random")[0] == 0
    drawn = [trials(one)["lambda"].item() for one in ("seed0", "seed1", "random")]
    assert drawn[0] != drawn[1] and drawn[0] == drawn[2]  # the first ten are random with tpe, too


@pytest.mark.slow
def test_a_search_that_was_killed_ends_like_one_that_was_not(clrun_tune):
    """SIGKILL in the second round, and half a line in the journal."""
    long = (*(text for text in SEARCH if text != "iterations=4"), "epochs=10", "trials=4", "at_once=2")
    assert clrun_tune(*long, "outputs=whole", workers=2)[0] == 0
    line = [sys.executable, "-m", "clrun.commands.tune", *long, "outputs=killed", "workers=2"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for said in process.stdout:
            if said.startswith("Trials 3, 4"):
                break
        until(lambda: len(list(Path("killed").glob("runs/*/*/"))) > 2)
        process.send_signal(signal.SIGKILL)
    (journal,) = Path("killed").glob("tune/*/journal.log")
    with journal.open("a") as file:
        file.write('{"op_code": 6, "trial')
    Path(f"{journal}.lock").touch()
    before = {path: path.stat().st_mtime_ns for path in summaries(outputs="killed")}
    code, out, _ = clrun_tune(*long, "outputs=killed", workers=2)
    assert code == 0 and "Trials 3, 4 of 4" in out and "Trials 1" not in out
    assert len(before) >= 2 and all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert trials("killed").equals(trials("whole"))


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def test_a_crashed_trial_is_tried_again(clrun_tune, faulty):
    typed = (*faulty("raise RuntimeError('no luck')"), "fault=0,1,2", *SHORT, "at_once=2")
    code, out, err = clrun_tune(*typed)
    assert code == 1 and command_in(out)
    assert re.search(r"fault=1: \S+faulty_of_the_user.py, line \d+, in \w+: .*: RuntimeError: no luck", err)
    assert trials().status.tolist() == ["done", "unfinished", "done"]
    Path("repaired").touch()
    code, out, _ = clrun_tune(*typed)
    assert code == 0 and trials().status.tolist() == ["done"] * 3 and "1 run, 1 to train" in out


def test_a_round_of_crashes_ends_the_search(clrun_tune, faulty):
    typed = (*faulty("1 / 0"), "lr=log(1e-4,1e-1)", *SHORT)
    code, out, err = clrun_tune(*typed, "trials=30", "at_once=2")
    assert code == 1 and "2 trials crashed" in err and out.count("to train") == 1


def test_a_search_is_one_processes(clrun_tune, neighbour):
    assert clrun_tune(*SEARCH, "trials=1")[0] == 0
    (folder,) = Path("outputs").glob("tune/*/")
    hold(folder, neighbour)
    code, _, err = clrun_tune(*SEARCH, "trials=2")
    assert code == 2 and f"process {neighbour.pid} on {socket.gethostname()} is at this search" in err
    assert len(list(Path("outputs").glob("runs/ewc/*/"))) == 1


# ---------------------------------------------------------------- what is searched


def test_a_short_list_is_tried_from_end_to_end(clrun_tune):
    code, out, _ = clrun_tune("strategy=ewc,si", "lambda=1,10", "c=0.1,1", *SHORT)
    assert code == 0
    table = trials()
    assert len(table) == len(set(zip(table.strategy, table["lambda"], table.c, strict=True))) == 8
    assert len(list(Path("outputs").glob("runs/*/*/"))) == 4  # ewc takes no c, and si no lambda
    typed = command_in(out)
    assert ("c=" in typed) == ("strategy=si" in typed) and ("lambda=" in typed) == ("strategy=ewc" in typed)


def finished_without_training(question: Question, folder: Path) -> list[int]:
    """Go on with the search in a folder; every trial scores 0.5 -> the places of the lambdas tried."""
    found = search.Search(question, folder, search.opened(folder), 2, {})
    while drawn := found.next_round():
        for trial in drawn:
            found.study.tell(trial.number, 0.5)
    return [trial.params["lambda"] for trial in found.trials("COMPLETE")]


class TakenOver(Unguarded):
    """The guard of a search that another process has taken over."""

    def check(self):
        raise locks.LockLost(Path("elsewhere"), None)


def test_a_search_that_another_process_has_taken_over_draws_no_trial(tmp_path):
    question = read(tune.parser().parse_intermixed_args([*SHORT, "strategy=ewc", "lambda=1,2,3"]), catalog.read())
    found = search.Search(question, tmp_path, search.opened(tmp_path), 2, {}, TakenOver())
    with pytest.raises(locks.LockLost):
        found.next_round()
    assert found.study.get_trials() == []


def test_every_point_of_a_list_is_tried_wherever_the_process_ended(tmp_path):
    """The journal is cut after each of its lines, and within the next one."""
    arguments = tune.parser().parse_intermixed_args([*SHORT, "strategy=ewc", "lambda=1,2,3"])
    question = read(arguments, catalog.read())
    assert sorted(finished_without_training(question, tmp_path)) == [0, 1, 2]
    journal = tmp_path / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > 10
    for count in range(len(lines)):
        journal.write_bytes(b"".join(lines[:count]) + lines[count][:9])
        assert sorted(finished_without_training(question, tmp_path)) == [0, 1, 2], f"cut after line {count}"


def test_a_strategy_of_the_users_own(clrun_tune, tmp_path):
    (tmp_path / "my" / "strategy").mkdir(parents=True)
    text = (CONF / "strategy" / "ewc.yaml").read_text().replace("name: ewc", "name: mine")
    (tmp_path / "my" / "strategy" / "mine.yaml").write_text(text)
    code, out, _ = clrun_tune("--config-dir", "my", "strategy=mine", "lambda=1,2", *SHORT)
    assert code == 0 and command_in(out).startswith("clrun --config-dir my strategy=mine")


def test_as_many_trials_as_are_trained_at_once(settings_of):
    def wide(*typed, seeds=1, device="cpu", cards=1):
        question = Question(list(typed), {}, {"seeds": seeds}, catalog.read(), None)
        run = prepare.prepare(settings_of(*SHORT, *typed))
        return search.width(question, run, device_type=lambda _: device, cores=4, cards=MadeUpCards(*[0] * cards))

    assert [wide(), wide("workers=3"), wide("threads=2")] == [4, 3, 2]
    assert [wide(device="cuda"), wide(seeds=3, device="cuda")] == [16, 5]
    assert [wide("stack=8", seeds=2, device="cuda"), wide("stack=off", device="cuda")] == [4, 1]
    assert [wide(device="cuda", cards=2), wide("stack=off", device="cuda", cards=2)] == [32, 2]


def test_trials_as_jobs_of_a_cluster(clrun_tune):
    pytest.importorskip("submitit")
    code, out, _ = clrun_tune("lambda=1,10,100", *SHORT, "cluster=local", "cluster.cpus=2", "at_once=3")
    assert code == 0 and out.count("done (job") == 3 and trials().status.tolist() == ["done"] * 3
    assert "cluster=local cluster.cpus=2" in command_in(out)
    code, _, err = clrun_tune("lambda=1,10", *SHORT, "cluster=slurm", "cluster.wait=false")
    assert code == 2 and "a search waits for its trials" in err


def axis(text: str) -> space.Axis:
    return space.read([text], catalog.read())[1][text.partition("=")[0]]


def test_axes():
    assert axis("lambda=interval(1,10)") == space.Interval(1.0, 10.0, log=False, whole=False)
    assert axis("lambda=log(1,1e6)") == axis("lambda=tag(log, interval(1, 1e6))")
    assert axis("batch_size=interval(8,64)") == space.Interval(8, 64, log=False, whole=True)
    assert axis("lambda=1,10,1e2") == space.Listed(("1", "10", "100.0"), ordered=True)
    assert axis("lambda=10,1") == space.Listed(("10", "1"), ordered=False)
    assert axis("fisher=exact,empirical") == axis("fisher=choice(exact,empirical)")
    assert axis("epochs=range(1,6,2)") == space.Listed(("1", "3", "5"), ordered=True)
    assert axis("model.widths=[8],[8,8]") == space.Listed(("[8]", "[8,8]"), ordered=False)
    assert space.size({"a": axis("epochs=interval(1,4)"), "b": axis("lambda=1,2")}) == 8


@given(st.floats(1e-8, 1e8), st.floats(1e-8, 1e8), st.floats(0, 1))
def test_what_is_drawn_is_typed_in_four_digits_and_lies_between_the_ends(one, other, share):
    low, high = sorted((one, other))
    drawn = low + share * (high - low)
    typed = space.Interval(low, high, log=False, whole=False).typed(min(drawn, high))
    assert low <= float(typed) <= high
    assert float(typed) == pytest.approx(drawn, rel=1e-3)


MISTAKES = {
    "nothing": ((), "there is nothing to search"),
    "no validation": (("lambda=1,2", "validation=0"), "leave it out, or type 0.1"),
    "seeds as a list": (("lambda=1,2", "seed=0,1"), "type seeds=3"),
    "the stream": (("lambda=1,2", "scenario=task,domain"), "scenario with several values"),
    "a machine": (("lambda=1,2", "workers=1,2"), "workers with several values"),
    "its own": (("lambda=1,2", "trials=1,2"), "trials with several values"),
    "trials": (("lambda=1,2", "trials=0"), "trials=0: must be a whole number, at least 1"),
    "sampler": (("lambda=1,2", "sampler=tpee"), "did you mean tpe?"),
    "out of range": (("lambda=interval(-1,1)",), "lambda=-1: must be a finite number, at least 0"),
    "the wrong way round": (("lambda=interval(2,1)",), "from the smaller number to the larger"),
    "a logarithm of zero": (("lambda=log(0,1)",), "above 0"),
    "no number": (("fisher=interval(0,1)",), "list its values"),
    "a group": (("strategy=interval(0,1)",), "list its values"),
    "not whole": (("epochs=interval(0.5,2)",), "is a whole number"),
    "a tag": (("lambda=tag(exp, interval(1,2))",), "the tag log alone"),
    "a tagged list": (("lambda=tag(log, choice(1,2))",), "take no tag"),
    "an unknown key": (("lamda=1,2",), "did you mean lambda?"),
    "an unknown strategy": (("strategy=ewk,si", "lambda=1,2"), "did you mean ewc?"),
    "a foreign knob": (("strategy=finetune", "lambda=1,2"), "takes no lambda"),
    "first_tasks": (("lambda=1,2", "first_tasks=2"), "type tune_tasks=K"),
    "tune_tasks": (("lambda=1,2", "tune_tasks=9"), "tune_tasks=9: the stream has 5 tasks"),
    "rerun": (("lambda=1,2", "rerun=true"), "sampler_seed"),
    "hydra": (("lambda=1,2", "hydra/launcher=joblib"), "own launcher"),
    "a flag": (("-m", "lambda=1,2"), "without dashes"),
    "no value": (("lambda=1,2", "trials"), "key=value"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_paragraph(clrun_tune, case):
    typed, said = MISTAKES[case]
    code, out, err = clrun_tune(*typed)
    assert code == 2 and said in err and err.count("\n") == 1 and not out
    assert not Path("outputs").exists()


def test_without_optuna(clrun_tune, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = clrun_tune(*SEARCH)
    assert code == 2 and "pip install 'clrun[tune]'" in err and err.count("\n") == 1


def test_help(clrun_tune, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)  # nor does it need optuna
    code, out, _ = clrun_tune("--help")
    assert code == 0 and all(word in out for word in (*SEARCH_KEYS, *tune.EXAMPLES, "interval(LOW,HIGH)"))


def commands() -> list[str]:
    lines = [line for page in PAGES if page.is_file() for block in blocks(page, "bash") for line in block.splitlines()]
    return [*tune.EXAMPLES, *(line for line in lines if line.startswith("clrun-tune "))]


@needs_checkout
@pytest.mark.parametrize("command", commands())
def test_every_command_in_the_pages_is_accepted(command, monkeypatch):
    monkeypatch.delenv("CLRUN_DATA_DIR", raising=False)
    _, *typed = shlex.split(command, comments=True)
    assert read(tune.parser().parse_intermixed_args(typed), catalog.read()).axes


def test_a_search_over_domains_says_how_many_there_are(clrun_tune):
    random, y, place = np.random.default_rng(0), np.arange(60) % 2, np.arange(60) // 2 % 3
    x = random.normal(size=(60, 4))
    np.savez("my.npz", x_train=x, y_train=y, task_train=place, x_test=x, y_test=y, task_test=place)
    data = ("dataset=arrays", "dataset.file=my.npz", "split=domains", "scenario=domain")
    typed = (*data, "iterations=4", "model.widths=[8]", "device=cpu", "pictures=false", "lambda=1,2")
    for key in ("tune_tasks=4", "tasks=5"):
        code, out, err = clrun_tune(*typed, key)
        assert code == 2 and err.count("\n") == 1 and not out and not Path("outputs").exists()
        assert ("tune_tasks=4: the stream has 3 tasks" if "tune" in key else "the data set has 3 domains") in err
    code, out, err = clrun_tune(*typed)
    assert code == 0 and "after all 3 tasks" in out, err
    code, out, err = clrun_tune(*typed, "tune_tasks=2")
    assert code == 0 and "after the first 2 of 3 tasks" in out, err


def test_a_question_has_one_folder(settings_of, monkeypatch):
    def folder(*typed):
        question = read(tune.parser().parse_intermixed_args([*SHORT, *typed]), catalog.read())
        return search.name(question, prepare.prepare(question.runs(question.first())[0]))

    same = folder("lambda=1,2", "trials=3", "at_once=5", "workers=2")
    assert same.startswith("ewc-lambda-") and folder("strategy=ewc", "lambda=choice(1,2)", "validation=0.1") == same
    other = ["lambda=1,3", "lambda=1,2 seeds=2", "lambda=1,2 tune_tasks=1", "lambda=1,2 seed=1", "lambda=1,2 lr=0.1"]
    assert len({same, *(folder(*text.split()) for text in [*other, "lambda=1,2 sampler_seed=1"])}) == 7
    with pytest.raises(UsageError):
        folder("lambda=1")
