"""What a sweep prints when it has ended."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from clrun.config.catalog import format_value
from clrun.config.settings import Settings
from clrun.results.outcome import SOURCES

if TYPE_CHECKING:
    import pandas as pd

    from clrun.runs.prepared import Prepared


DATA = {"data_dir", "dataset.root"}  # no part of the identity, which knows what lies there


def counted(runs: int) -> str:
    return f"{runs} run{'s' if runs != 1 else ''}"


def failures(failed: Sequence["Prepared"], errors: Mapping[str, str], runs: int) -> str:
    """Which runs crashed, why, and where it is written."""
    lines = [f"{len(failed)} of {runs} runs crashed; the same command again tries only these:"]
    for one in failed:
        lines.append(f"  {errors[one.id]} ({one.directory / 'failed.txt'})")
    return "\n".join(lines)


def varying(settings: Sequence[Settings]) -> list[str]:
    """The keys of the identity that differ between runs, but for the strategy; and where their data lie."""
    told = {"strategy", *SOURCES}  # a class has one source here
    keys = dict.fromkeys(key for one in settings for key in one.values if key not in one.private - DATA | told)
    return [key for key in keys if len({repr(one.values[key]) for one in settings if key in one.values}) > 1]


def show(runs: Sequence["Prepared"], ended: Mapping[str, "pd.Series"]) -> list[str]:
    """A table of the runs, what differs between them and what came out; with several seeds the means over them too.

    Returns why something of it is not written."""
    if not runs:
        return []
    import pandas as pd

    from clrun.runs import show
    from clrun.terminal import sweep_tables
    from clrun.terminal.console import make_console

    trouble = [show.pictured(one) for one in runs]
    trouble += [show.collected(one) for one in {one.settings["outputs"]: one for one in runs}.values()]
    keys = ["strategy", *varying([one.settings for one in runs])]
    told = [{key: format_value(one.settings[key]) for key in keys if key in one.settings.values} for one in runs]
    table = pd.DataFrame([{**ended[one.id], **values} for one, values in zip(runs, told, strict=True)])
    table = table.assign(**{key: [values.get(key, "") for values in told] for key in keys})
    console = make_console()
    sweep_tables.runs_table(console, table, keys)
    if "seed" in keys:
        sweep_tables.sweep_table(console, table, keys)
    sweep_tables.best_by_validation(console, table, keys)
    return [str(error) for error in trouble if error is not None]


def tally(runs: int, ended: Mapping[str, "pd.Series"], failed: int) -> str:
    """Such as "30 runs: 22 done, 5 diverged, 3 crashed or killed."."""
    counts = Counter(row["status"] for row in ended.values())
    counts["crashed or killed"] = failed
    return f"{counted(runs)}: {', '.join(f'{n} {what}' for what, n in counts.items() if n)}."
