"""The terminal report of a finished run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from clrun.results import collection, run_files
from clrun.runs.changed_pictures import since_an_earlier_run
from clrun.runs.failures import disk_trouble
from clrun.runs.prepared import Prepared
from clrun.runs.targets import python_name
from clrun.runs.unequal import unequal_tasks
from clrun.system.errors import RunsFailed, UsageError
from clrun.terminal import run_tables
from clrun.terminal.console import make_console


def warn(runs: Sequence[Prepared]) -> None:
    """Print what is to be known before training: strategies that are known to fail in their scenario, tasks that differ
    in size, and which pictures have changed since an earlier run."""
    warnings = {(run.settings["strategy"], run.settings["scenario"]): run.settings.warning for run in runs}
    for (strategy, scenario), warning in warnings.items():
        if warning:
            print(f"Warning: strategy={strategy} scenario={scenario}: {warning}.")
    for text in dict.fromkeys(text for run in runs for text in unequal_tasks(run)):
        print(f"Warning: {text}.")
    for sentence in dict.fromkeys(run.origin.sentence for run in runs if run.origin is not None):
        print(sentence)
    for sentence in dict.fromkeys(filter(None, map(since_an_earlier_run, runs))):
        print(sentence)


def update_results(runs: Sequence[Prepared]) -> RunsFailed | UsageError | None:
    """Bring results.csv up to date after these runs, of one folder, have ended. Return the error of the disk that kept
    that from being done."""
    outputs, directories = Path(runs[0].settings["outputs"]), [run.directory for run in runs]
    return disk_error_of(runs[0], lambda: collection.update(outputs, directories))


def draw_missing_plots(prepared: Prepared) -> RunsFailed | UsageError | None:
    """Draw the plots of a finished run that has none, where they are wanted. Return the error that prevented it."""
    if not prepared.settings["plots"] or run_files.has_plots(prepared.directory):
        return None
    from clrun.results import plots  # matplotlib takes half a second to import

    return disk_error_of(prepared, lambda: plots.draw(prepared.directory))


def disk_error_of(prepared: Prepared, action: Callable[[], object]) -> RunsFailed | UsageError | None:
    """Do something that writes files, and return the error of the disk that it met."""
    try:
        with disk_trouble(prepared.settings["outputs"], prepared.directory):
            action()
    except (RunsFailed, UsageError) as error:
        return error
    return None


def show(prepared: Prepared) -> None:
    """Print the tables of a finished run. Raise RunsFailed or UsageError, after that, if a file cannot be written."""
    settings = prepared.settings
    outputs = Path(settings["outputs"])
    error = draw_missing_plots(prepared) or update_results([prepared])
    hyper = prepared.strategy.Hyper._fields
    shown = [key for key in settings.knobs if python_name(key) in hyper or key in settings.not_default]
    run_tables.show(make_console(), prepared.directory, outputs, prepared.chance, shown)
    if error is not None:
        raise error
