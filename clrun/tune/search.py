"""A search on optuna, by validation accuracy alone.

A trial is a setting of the searched keys; its score is the mean over seeds of the average accuracy on held-out training
samples after the last task. Of a finished run one file is read, validation_matrix.csv, in which no test number stands.

Trials are asked for in rounds and trained together, by the machinery of a sweep (clrun/sweep.py). What was asked for
and what came of it stands in optuna's journal, `outputs/tune/<name>/journal.log`: a round that was interrupted is
finished first when the same command is typed again. Trial n is drawn by a sampler of its own, seeded by `sampler_seed`
and n, so that an interrupted search ends as one that never was.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clrun.system.errors import RunsFailed, UsageError
from clrun.tune import space

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

    from clrun.config.settings import Settings
    from clrun.runs.prepared import Prepared
    from clrun.tune.question import Question


STACKED = 16  # runs that a GPU is given at once


JOBS = 4  # of a cluster that a round is made for, where cluster.jobs is not typed


SHOWN = 10  # best trials


# ---------------------------------------------------------------- one trial


def validation_accuracy(directory: Path) -> float | None:
    """The score of a finished run, None if it diverged: its average accuracy on held-out training samples after the
    last task. Nothing else of a run is ever read here."""
    import pandas as pd

    score = float(pd.read_csv(directory / "validation_matrix.csv")["average"].iloc[-1])
    return None if math.isnan(score) else score


@dataclass
class Search:
    """A question, and how far it is answered."""

    question: "Question"
    folder: Path
    study: "Study"
    width: int  # trials a round
    crashed: dict[int, str]  # trial -> why, in this command

    def run(self) -> None:
        """Train what is missing, and show the best. RunsFailed: some crashed."""
        while trials := self.round():
            self.train(trials)
            if all(trial.number in self.crashed for trial in trials):
                break
        self.show()
        if self.crashed:
            told = "\n".join(f"  trial {number}: {reason}" for number, reason in self.crashed.items())
            raise RunsFailed(f"{len(self.crashed)} trials crashed; the same command again tries them again:\n{told}")

    # ------------------------------------------------------------ asking

    def trials(self, *states: str) -> list["FrozenTrial"]:
        """Those in one of these states, in their order."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name in states]

    def round(self) -> list["FrozenTrial | Trial"]:
        """The trials to be trained next: what an interrupted round has left, and the rest of it or the next one."""
        for trial in self.trials("RUNNING"):
            if trial.params.keys() != self.question.axes.keys():  # killed while it was being drawn
                self.study.tell(trial.number, state=state("FAIL"))
        running = [trial for trial in self.trials("RUNNING") if trial.number not in self.crashed]
        asked = len(self.trials("RUNNING", "COMPLETE", "PRUNED"))
        room = self.width - asked % self.width if asked % self.width or not running else 0
        room = min(room, self.question.own["trials"] - asked)
        return [*running, *(self.ask() for _ in range(room) if not self.listed or self.trials("WAITING"))]

    @cached_property
    def listed(self) -> bool:
        """Whether all points there are have been put down to be tried, one after another."""
        axes = self.question.axes
        if space.size(axes) > self.question.own["trials"]:
            return False
        points: list[dict[str, Any]] = [{}]
        for key, axis in axes.items():
            points = [point | {key: value} for point in points for value in axis.drawn()]
        for point in points:
            self.study.enqueue_trial(point, skip_if_exists=True)
        return True

    def ask(self) -> "Trial":
        """The next point."""
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = sampler(self.question.own["sampler"], self.question.own["sampler_seed"], number)
        return self.study.ask({key: axis.distribution() for key, axis in self.question.axes.items()})

    # ------------------------------------------------------------ training

    def point(self, trial: "FrozenTrial | Trial") -> dict[str, str]:
        """A trial's values as they are typed."""
        return {key: axis.typed(trial.params[key]) for key, axis in self.question.axes.items()}

    def train(self, trials: Sequence["FrozenTrial | Trial"]) -> None:
        """Train the runs of a round that are not finished, and tell optuna what came of its trials, in order."""
        from clrun.sweep import cluster, execution

        where = self.question.cluster
        prepared = {trial.number: self.prepared(trial) for trial in trials}
        every = {one.id: one for runs in prepared.values() if runs is not None for one in runs}
        todo = [one for one in every.values() if not one.finished]
        numbers = ", ".join(str(trial.number + 1) for trial in trials)
        print(
            f"Trials {numbers} of {self.question.own['trials']}: {len(every)} runs, {len(todo)} to train.", flush=True
        )
        train = execution.train_sweep if where is None else partial(cluster.submit, cluster=where)
        errors = train(todo) if todo else {}
        for trial in trials:
            self.tell(trial, prepared[trial.number], errors)
        self.write()

    def prepared(self, trial: "FrozenTrial | Trial") -> list["Prepared"] | None:
        """The runs of a trial; None if there can be none, as with some pairs of values that are legal each."""
        from clrun.runs import prepare

        try:
            return [prepare.prepare(settings) for settings in self.question.runs(self.point(trial))]
        except UsageError as error:
            print(f"trial {trial.number + 1} cannot be: {error}")
            return None

    def tell(self, trial: "FrozenTrial | Trial", runs: list["Prepared"] | None, errors: Mapping[str, str]) -> None:
        """What came of a trial. One that crashed is left as it is, and so tried again by the next command."""
        said = " ".join(f"{key}={text}" for key, text in self.point(trial).items())
        reasons = [errors[one.id] for one in runs or [] if one.id in errors]
        if reasons:
            self.crashed[trial.number] = f"{said}: {reasons[0]}"
            return
        scores = [validation_accuracy(one.directory) for one in runs or []]
        if not scores or None in scores:  # pruned: known to be bad, and never the best
            self.study.tell(trial.number, state=state("PRUNED"))
            said += ": diverged" if scores else ": impossible"
        else:
            self.study.tell(trial.number, sum(scores) / len(scores))
            said += f": {percent(scores)}"
        print(f"trial {trial.number + 1}: {said}", flush=True)

    # ------------------------------------------------------------ afterwards

    def write(self) -> None:
        """trials.csv, beside the journal."""
        from clrun.results.run_files import write_table
        from clrun.results.tables import objects

        words = {"COMPLETE": "done", "PRUNED": "diverged", "RUNNING": "unfinished"}
        rows = [
            {"trial": trial.number + 1, "status": words[trial.state.name], "validation_accuracy": trial.value}
            | self.point(trial)
            for trial in self.trials(*words)
        ]
        write_table(self.folder / "trials.csv", objects(rows))

    def show(self) -> None:
        """The best trials, and the command of the winner. RunsFailed if there is none."""
        from clrun.terminal.console import make_console

        best = sorted(self.trials("COMPLETE"), key=lambda trial: -trial.value)  # of equals the first one tried
        if not best:
            if self.crashed:
                return
            raise RunsFailed("all trials diverged, so there is no best one; search smaller values, of lr for one.")
        question = self.question
        console = make_console()
        console.print(table(self, best[:SHOWN]))
        print(chosen_on(question, question.runs(self.point(best[0]))[0]))
        print("The winner on the whole stream, and on all of the training data:\n")
        print(f"  {question.winner(self.point(best[0]))}\n")
        print(f"All trials: {self.folder / 'trials.csv'}")


def state(name: str) -> Any:
    """Of a trial, in optuna's words."""
    from optuna.trial import TrialState

    return TrialState[name]


def sampler(kind: str, seed: int, number: int) -> Any:
    """What draws trial `number`, of others that it knows."""
    from optuna import samplers
    from optuna.exceptions import ExperimentalWarning

    own = int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=4).digest(), "big")
    if kind == "random":
        return samplers.RandomSampler(seed=own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return samplers.TPESampler(seed=own, multivariate=True, constant_liar=True)


# ---------------------------------------------------------------- telling


def percent(scores: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    import pandas as pd

    from clrun.terminal.console import mean_and_deviation

    return f"{mean_and_deviation(pd.Series(scores))} %"


def table(search: Search, trials: Sequence["FrozenTrial"]) -> Any:
    """The best trials, best first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from clrun.runs import prepare

    made = Table("trial", *search.question.axes, "validation accuracy", "n", box=SIMPLE_HEAD)
    for trial in trials:
        point = search.point(trial)
        found = [prepare.prepare(settings).directory for settings in search.question.runs(point)]
        there = [directory for directory in found if (directory / "validation_matrix.csv").is_file()]
        scores = [validation_accuracy(directory) for directory in there] or [trial.value]
        made.add_row(str(trial.number + 1), *point.values(), percent(scores), str(len(found)))
    return made


def chosen_on(question: "Question", settings: "Settings") -> str:
    """By what the winner was chosen."""
    tasks = settings["first_tasks"] or settings["tasks"]
    which = f"the first {tasks} of {settings['tasks']} tasks" if settings["first_tasks"] else f"all {tasks} tasks"
    n = question.own["seeds"]
    mean = f"the mean over {n} seeds" if n > 1 else "of one seed"
    share = f"{100 * settings['validation']:g} % of the training data, held out"
    return f"Chosen by validation accuracy ({share}) after {which}, {mean}. No test number was read."


# ---------------------------------------------------------------- beginning, and going on


@contextmanager
def searching(question: "Question") -> Iterator[Search]:
    """A search that is this process's alone. UsageError: another one is at it."""
    from clrun.runs import prepare
    from clrun.runs.failures import disk_trouble
    from clrun.sweep import workers
    from clrun.system import locks

    first = question.runs(question.first())
    if question.cluster is None:
        workers.warm_up_if_several(question.runs(question.corners()[-1]) + first)
    one = prepare.prepare(first[0])
    folder = Path(one.settings["outputs"]) / "tune" / name(question, one)
    with disk_trouble(one), locks.claimed([folder]) as claim:
        for owner in claim.others.values():
            raise UsageError(f"{folder}: {owner} is at this search; wait for it, or end that one.")
        yield Search(question, folder, opened(folder), question.own["at_once"] or width(question, one), {})


def name(question: "Question", one: "Prepared") -> str:
    """The folder of a search: equal for commands that ask the same, however many trials they want."""
    axes = {key: repr(axis) for key, axis in question.axes.items()}
    own = {key: value for key, value in question.own.items() if key not in ("trials", "at_once")}
    text = json.dumps([one.id, axes, own], sort_keys=True)
    strategy = "-".join(question.axes["strategy"].ends if "strategy" in axes else [one.settings["strategy"]])
    readable = "-".join([strategy, *(key for key in axes if key != "strategy")])
    return f"{readable[:80]}-{hashlib.sha1(text.encode()).hexdigest()[:10]}"


def width(question: "Question", one: "Prepared") -> int:
    """Trials a round: one a worker, or on CUDA as many as make a stack; on a cluster that many for each job."""
    from clrun.sweep import plan

    where = question.cluster
    if where is not None:
        jobs = where.at_once or JOBS
        return jobs * (max(1, STACKED // question.own["seeds"]) if where["gpus"] else where["cpus"])
    if plan.device_type(one) == "cuda" and one.settings["stack"] != "off":
        stack = STACKED if one.settings["stack"] == "auto" else one.settings["stack"]
        return max(1, stack // question.own["seeds"])
    return plan.wanted(one.settings, one.settings["threads"], plan.device_type(one))


def opened(folder: Path) -> "Study":
    """The study of a folder that is this process's. What a process that was killed has left half-written goes."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = folder / "journal.log"
    Path(f"{journal}.lock").unlink(missing_ok=True)
    if journal.is_file() and (text := journal.read_bytes()) and not text.endswith(b"\n"):
        journal.write_bytes(text[: text.rfind(b"\n") + 1])
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.create_study(storage=storage, study_name="clrun", direction="maximize", load_if_exists=True)
