"""The search for hyperparameters with optuna, by validation accuracy alone.

A trial is a setting of the searched keys. Its score is the mean over seeds of the average accuracy on held-out
training samples after the last task. Of a finished run one file is read, validation_matrix.csv, which holds no test
accuracy; and where that has no score, summary.csv, for whether the run diverged.

Trials are drawn in rounds and trained together, as a sweep is (clrun/sweep). They and their scores are kept in
optuna's journal, `outputs/tune/<name>/journal.log`. If the search was interrupted, the same command finishes that round
first. Trial n is drawn by a sampler that is seeded by `sampler_seed` and n, so that the trials of an interrupted search
are those of one that was not.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clrun.system.atomic_files import UNGUARDED, Guard
from clrun.system.cards import CARDS, Cards
from clrun.system.errors import RunsFailed, UsageError
from clrun.tune import space
from clrun.tune.question import refuse_many_tasks

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial, TrialState

    from clrun.config.settings import Settings
    from clrun.runs.prepared import Prepared
    from clrun.terminal.fitting import Cells
    from clrun.tune.question import Question

# The attribute in which optuna keeps the values of a trial that was enqueued.
FIXED = "fixed_params"

# Runs that a GPU trains at once.
STACKED = 16

# Jobs of a cluster for which a round has trials, where cluster.jobs is not typed.
JOBS = 4

# The best trials in the table at the end.
SHOWN = 10


# ---------------------------------------------------------------- one trial


def validation_accuracy(directory: Path) -> float | None:
    """Return the score of a finished run; None if it diverged.

    It is the average accuracy (a fraction) on held-out training samples after the last task. Nothing else of a run is
    read here but, where it has none, whether the run diverged. Raise UnreadableFile, as BeingTrained where another
    process trains the run again.
    """
    from clrun.results import reading, run_files

    path = directory / "validation_matrix.csv"
    score = float(reading.read_table(path)["average"].iloc[-1])
    if not math.isnan(score):
        return score
    reading.refuse_while_trained(directory)
    if run_files.summary_of(directory)["status"] == "diverged":
        return None
    raise reading.UnreadableFile(path, reading.NO_FINAL_ACCURACY)


@dataclass
class Search:
    """A search: its question, and its trials so far."""

    question: "Question"
    folder: Path
    study: "Study"
    width: int  # trials in a round
    crashed: dict[int, str]  # number of a trial that crashed in this command -> reason
    guard: Guard = UNGUARDED  # the lock of the folder, without which nothing is written

    def run(self) -> None:
        """Train the trials that are missing and print the best. Raise RunsFailed if some crashed, and LockLost if
        another process has taken the search over."""
        while trials := self.next_round():
            self.train(trials)
            if all(trial.number in self.crashed for trial in trials):
                break
        self.show()
        if self.crashed:
            lines = "\n".join(f"  trial {number}: {reason}" for number, reason in self.crashed.items())
            raise RunsFailed(f"{len(self.crashed)} trials crashed; the same command again tries them again:\n{lines}")

    # ------------------------------------------------------------ drawing trials

    def trials(self, *states: str) -> list["FrozenTrial"]:
        """Return the trials in one of these states of optuna, in their order."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name in states]

    def next_round(self) -> list["FrozenTrial | Trial"]:
        """Return the trials to train next: what is left of an interrupted round, or a new round. Raise LockLost."""
        self.guard.check()  # not `held`: a round can take longer to draw than others wait for the gate
        for trial in self.trials("RUNNING"):
            if trial.params.keys() != self.question.axes.keys():  # the process has ended while it was being drawn
                self.enqueue_again(trial)
                self.study.tell(trial.number, state=trial_state("FAIL"))
        running = [trial for trial in self.trials("RUNNING") if trial.number not in self.crashed]
        begun = len(self.trials("RUNNING", "COMPLETE", "PRUNED"))
        room = self.width - begun % self.width if begun % self.width or not running else 0
        room = min(room, self.question.search["trials"] - begun)
        trials: list[FrozenTrial | Trial] = [*running]
        for _ in range(room):
            if not self.enqueued or self.trials("WAITING"):
                trials.append(self.draw())
        return trials

    def enqueue_again(self, trial: "FrozenTrial") -> None:
        """Enqueue the point of a trial that was not drawn to its end, if it was enqueued and is not again already."""
        values = trial.system_attrs.get(FIXED)
        if values is not None and all(other.system_attrs.get(FIXED) != values for other in self.trials("WAITING")):
            self.study.enqueue_trial(values)

    @cached_property
    def enqueued(self) -> bool:
        """Whether all points of the space are enqueued: where there are no more of them than trials."""
        axes = self.question.axes
        if space.size(axes) > self.question.search["trials"]:
            return False
        points: list[dict[str, Any]] = [{}]
        for key, axis in axes.items():
            points = [point | {key: value} for point in points for value in axis.values()]
        for values in points:
            self.study.enqueue_trial(values, skip_if_exists=True)
        return True

    def draw(self) -> "Trial":
        """Return the next trial."""
        number = len([trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name != "FAIL"])
        self.study.sampler = sampler(self.question.search["sampler"], self.question.search["sampler_seed"], number)
        return self.study.ask({key: axis.distribution() for key, axis in self.question.axes.items()})

    # ------------------------------------------------------------ training

    def point(self, trial: "FrozenTrial | Trial") -> dict[str, str]:
        """Return a trial's values as they are typed."""
        return {key: axis.typed(trial.params[key]) for key, axis in self.question.axes.items()}

    def train(self, trials: Sequence["FrozenTrial | Trial"]) -> None:
        """Train the runs of a round that are not finished, and report its trials to optuna, in order."""
        from clrun.results import searched_runs
        from clrun.runs.failures import tidy_finished
        from clrun.sweep.cluster import submit
        from clrun.sweep.execution import train_sweep
        from clrun.sweep.summary import counted

        cluster = self.question.cluster
        prepared = {trial.number: self.prepared(trial) for trial in trials}
        every = {run.id: run for runs in prepared.values() if runs is not None for run in runs}
        todo = [run for run in every.values() if run.needs_training]
        tidy_finished(list(every.values()))
        numbers = ", ".join(str(trial.number + 1) for trial in trials)
        print(
            f"Trial{'s' if len(trials) != 1 else ''} {numbers} of {self.question.search['trials']}: "
            f"{counted(len(every))}, {len(todo)} to train.",
            flush=True,
        )
        searched_runs.add(self.folder, [run.id for run in todo])
        train = train_sweep if cluster is None else partial(submit, cluster=cluster)
        errors = train(todo) if todo else {}
        with self.guard.held():
            for trial in trials:
                self.tell(trial, prepared[trial.number], errors)
        self.write()

    def prepared(self, trial: "FrozenTrial | Trial") -> list["Prepared"] | None:
        """Return the runs of a trial; None if there cannot be any, as for some values that are legal each."""
        from clrun.runs import prepare

        try:
            return [prepare.prepare(settings) for settings in self.question.runs(self.point(trial))]
        except UsageError as error:
            print(f"trial {trial.number + 1} cannot be: {error}")
            return None

    def tell(self, trial: "FrozenTrial | Trial", runs: list["Prepared"] | None, errors: Mapping[str, str]) -> None:
        """Report the score of a trial to optuna, and print it.

        A trial that crashed, or of which a file is damaged, stays as it is, so that the next command tries it again.
        One that diverged or cannot be run is pruned: optuna learns from it, but it is never the best.
        """
        from clrun.results.reading import UnreadableFile

        values = " ".join(f"{key}={text}" for key, text in self.point(trial).items())
        reasons = [errors[run.id] for run in runs or [] if run.id in errors]
        if reasons:
            self.crashed[trial.number] = f"{values}: {reasons[0]}"
            return
        try:
            accuracies = [validation_accuracy(run.directory) for run in runs or []]
        except UnreadableFile as error:
            self.crashed[trial.number] = f"{values}: {error}"
            return
        scores = [accuracy for accuracy in accuracies if accuracy is not None]
        if scores and len(scores) == len(accuracies):
            self.study.tell(trial.number, sum(scores) / len(scores))
            result = percent(scores)
        else:
            self.study.tell(trial.number, state=trial_state("PRUNED"))
            result = "diverged" if accuracies else "impossible"
        print(f"trial {trial.number + 1}: {values}: {result}", flush=True)

    # ------------------------------------------------------------ results

    def write(self) -> None:
        """Write trials.csv beside the journal."""
        from clrun.results.run_files import write_table
        from clrun.results.tables import objects

        statuses = {"COMPLETE": "done", "PRUNED": "diverged", "RUNNING": "unfinished"}
        rows = [
            {"trial": trial.number + 1, "status": statuses[trial.state.name], "validation_accuracy": trial.value}
            | self.point(trial)
            for trial in self.trials(*statuses)
        ]
        write_table(self.folder / "trials.csv", objects(rows), self.guard)

    def show(self) -> None:
        """Print the best trials and the command of the winner. Raise RunsFailed if all trials diverged."""
        from clrun.runs import prepare
        from clrun.terminal.console import make_console
        from clrun.terminal.fitting import print_table

        best = sorted(self.trials("COMPLETE"), key=lambda trial: -score_of(trial))  # of equals the first that was tried
        if not best:
            if self.crashed:
                return
            raise RunsFailed("all trials diverged, so there is no best one; search smaller values, of lr for one.")
        question = self.question
        print_table(make_console(), table(self, best[:SHOWN]))
        chosen = prepare.prepare(question.runs(self.point(best[0]))[0])  # which knows how many domains there are
        print(chosen_on(question, chosen.settings))
        print("The winner on the whole stream, and on all of the training data:\n")
        print(f"  {question.winner(self.point(best[0]))}\n")
        print(f"All trials: {self.folder / 'trials.csv'}")


def score_of(trial: "FrozenTrial") -> float:
    """Return the score of a trial that is complete."""
    assert trial.value is not None
    return trial.value


def trial_state(name: str) -> "TrialState":
    """Return a trial's state of optuna by its name."""
    from optuna.trial import TrialState

    return TrialState[name]


def sampler(kind: str, seed: int, number: int) -> Any:
    """Return optuna's sampler for trial `number`, which also depends on the trials that have ended."""
    from optuna import samplers
    from optuna.exceptions import ExperimentalWarning

    trial_seed = int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=4).digest(), "big")
    if kind == "random":
        return samplers.RandomSampler(seed=trial_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return samplers.TPESampler(seed=trial_seed, multivariate=True, constant_liar=True)


# ---------------------------------------------------------------- the table of the best trials


def percent(scores: Sequence[float]) -> str:
    """Return the mean of fractions and their standard deviation, in percent."""
    import pandas as pd

    from clrun.terminal.console import mean_and_deviation

    return f"{mean_and_deviation(pd.Series(scores))} %"


def accuracy_or_none(directory: Path) -> float | None:
    """Return the score of a run as `validation_accuracy` does; None, too, where its file is gone or damaged: optuna's
    journal has the mean."""
    from clrun.results.reading import UnreadableFile

    try:
        return validation_accuracy(directory)
    except UnreadableFile:
        return None


def table(search: Search, trials: Sequence["FrozenTrial"]) -> "Cells":
    """Return the table of some trials."""
    from clrun.runs import prepare
    from clrun.terminal.fitting import Cells, Column

    axes = list(search.question.axes)
    rows = []
    for trial in trials:
        point = search.point(trial)
        directories = [prepare.prepare(settings).directory for settings in search.question.runs(point)]
        accuracies = [accuracy_or_none(directory) for directory in directories]
        scores = [accuracy for accuracy in accuracies if accuracy is not None] or [score_of(trial)]
        rows.append([str(trial.number + 1), *point.values(), percent(scores), str(len(directories))])
    columns = [Column("trial"), *(Column(name, text=True) for name in axes), Column("validation accuracy"), Column("n")]
    return Cells("", columns, rows, labels=1 + len(axes))


def chosen_on(question: "Question", settings: "Settings") -> str:
    """Return the sentences that state by what the winner was chosen."""
    tasks = settings["first_tasks"] or settings["tasks"]
    which = f"the first {tasks} of {settings['tasks']} tasks" if settings["first_tasks"] else f"all {tasks} tasks"
    n = question.search["seeds"]
    mean = f"the mean over {n} seeds" if n > 1 else "of one seed"
    share = f"{100 * settings['validation']:g} % of the training data, held out"
    return f"Chosen by validation accuracy ({share}) after {which}, {mean}. No test number was read."


# ---------------------------------------------------------------- starting and resuming


@contextmanager
def searching(question: "Question") -> Iterator[Search]:
    """Yield a search, locked for this process. Raise UsageError if another process has locked it, and RunsFailed if one
    has taken it over."""
    from clrun.runs import prepare
    from clrun.runs.failures import disk_trouble
    from clrun.sweep import workers
    from clrun.system import locks

    first = question.runs(question.first())
    if question.cluster is None:
        workers.warm_up_if_several(question.runs(question.corners()[-1]) + first)
    if question.search["tune_tasks"] is not None and first[0]["tasks"] is None:
        refuse_many_tasks(question, prepare.prepare(question.settings(question.first())).settings)
    run = prepare.prepare(first[0])
    folder = Path(run.settings["outputs"]) / "tune" / name(question, run)
    with disk_trouble(run.settings["outputs"], folder), locks.claimed([folder]) as claim:
        if folder in claim.others:
            raise UsageError(f"{folder}: {claim.others[folder]} is at this search; wait for it, or end that one.")
        at_once = question.search["at_once"] or width(question, run)
        try:
            yield Search(question, folder, opened(folder), at_once, {}, claim.mine[folder])
        except locks.LockLost:
            raise RunsFailed(
                f"{folder}: this process stood still for so long that another one took the search over; wait for that "
                "one, and type the same command again."
            ) from None


def name(question: "Question", run: "Prepared") -> str:
    """Return the name of a search's folder: equal for equal questions, whatever the number of trials.

    `run` is any run of the search.
    """
    axes = {key: repr(axis) for key, axis in question.axes.items()}
    search = {key: value for key, value in question.search.items() if key not in ("trials", "at_once")}
    text = json.dumps([run.id, axes, search], sort_keys=True)
    strategy = "-".join(question.axes["strategy"].ends if "strategy" in axes else [run.settings["strategy"]])
    readable = "-".join([strategy, *(key for key in axes if key != "strategy")])
    return f"{readable[:80]}-{hashlib.sha1(text.encode()).hexdigest()[:10]}"


def width(
    question: "Question",
    run: "Prepared",
    device_type: "Callable[[Prepared], str] | None" = None,
    cores: int | None = None,
    cards: Cards = CARDS,
) -> int:
    """Return the number of trials in a round: one for each worker, or as many as make a stack on each card.

    On a cluster there are that many for each job. device_type: by default that of clrun/sweep/plan.py. cores: CPU
    cores to use; by default those that this process may use.
    """
    from clrun.sweep import plan

    cluster = question.cluster
    if cluster is not None:
        jobs = cluster.at_once or JOBS
        return jobs * (max(1, STACKED // question.search["seeds"]) if cluster["gpus"] else cluster["cpus"])
    device = (device_type or plan.device_type)(run)
    if device == "cuda" and run.settings["stack"] != "off":
        stack = STACKED if run.settings["stack"] == "auto" else run.settings["stack"]
        return max(1, stack * plan.wanted(run.settings, 1, device, cards=cards) // question.search["seeds"])
    return plan.wanted(run.settings, run.settings["threads"], device, cores, cards)


def opened(folder: Path) -> "Study":
    """Return the study of a folder that this process has locked.

    The last line of the journal is removed if a killed process has left it half-written, and so is optuna's lock. Raise
    UnreadableFile where the journal is damaged.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = folder / "journal.log"
    Path(f"{journal}.lock").unlink(missing_ok=True)
    repair_end(journal)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(storage=storage, study_name="clrun", direction="maximize", load_if_exists=True)
    except (ValueError, LookupError, TypeError, AssertionError, optuna.exceptions.OptunaError) as error:
        raise damaged_journal(journal, f"its lines do not fit together ({type(error).__name__}: {error})") from error


def repair_end(journal: Path) -> None:
    """Remove the last line of a journal if a killed process has left it half-written. Raise UnreadableFile where
    another line is none of optuna's."""
    from clrun.results.reading import UnreadableFile, read_bytes

    if not journal.exists():
        return
    try:
        content = read_bytes(journal)
    except UnreadableFile as error:
        raise damaged_journal(journal, error.cause) from None
    whole = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines(), start=1):
        if not is_entry(line):
            raise damaged_journal(journal, f"line {number} is none of optuna's")
    if whole != content:
        journal.write_bytes(whole)


def is_entry(line: bytes) -> bool:
    """Return whether a line of a journal is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def damaged_journal(journal: Path, cause: str) -> Exception:
    """Return the refusal of a journal that cannot be read."""
    from clrun.results.reading import UnreadableFile

    advice = (
        f"Delete the folder {journal.parent} and type the same command again: the search begins anew, and runs that "
        "are finished are not trained again."
    )
    return UnreadableFile(journal, cause, advice)
