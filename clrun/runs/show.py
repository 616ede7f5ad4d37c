"""The terminal report of a finished run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from clrun.results import run_files
from clrun.runs.failures import disk_trouble
from clrun.runs.prepared import Prepared
from clrun.runs.targets import spelling
from clrun.system.errors import RunsFailed, UsageError
from clrun.terminal import run_tables
from clrun.terminal.console import make_console


def warn(todo: Sequence["Prepared"]) -> None:
    """Say of each strategy that it is known to fail in its scenario."""
    known = {(one.settings["strategy"], one.settings["scenario"]): one.settings.warning for one in todo}
    for (strategy, scenario), warning in known.items():
        if warning:
            print(f"Warning: strategy={strategy} scenario={scenario}: {warning}.")


def collected(prepared: Prepared) -> RunsFailed | UsageError | None:
    """Bring outputs/results.csv up to date; what kept that from being done."""
    return kept_from(prepared, lambda: run_files.collect(Path(prepared.settings["outputs"])))


def pictured(prepared: Prepared) -> RunsFailed | UsageError | None:
    """Draw the pictures of a finished run that has none, where they are wanted; what kept that from being done."""
    if not prepared.settings["pictures"] or run_files.pictured(prepared.directory):
        return None
    from clrun.results import plots  # matplotlib costs half a second

    return kept_from(prepared, lambda: plots.draw(prepared.directory))


def kept_from(prepared: Prepared, act: Callable[[], object]) -> RunsFailed | UsageError | None:
    """What the disk kept from being done, if anything."""
    try:
        with disk_trouble(prepared):
            act()
    except (RunsFailed, UsageError) as error:
        return error
    return None


def show(prepared: Prepared) -> None:
    """Print the tables of a finished run. Raises RunsFailed, UsageError, after them, if results.csv is not written."""
    settings = prepared.settings
    outputs = Path(settings["outputs"])
    trouble = pictured(prepared) or collected(prepared)
    told = [k for k in settings.knobs if spelling(k) in prepared.strategy.Hyper._fields or k in settings.unusual]
    run_tables.show(make_console(), prepared.directory, outputs, prepared.chance, told)
    if trouble is not None:
        raise trouble
