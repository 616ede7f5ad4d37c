"""What a sweep prints when it has ended."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from clrun.config.settings import Settings
from clrun.results.columns import SOURCES
from clrun.system.text import format_value

if TYPE_CHECKING:
    import pandas as pd

    from clrun.results.reading import UnreadableFile
    from clrun.runs.prepared import Prepared


def counted(runs: int) -> str:
    """Return '1 run', '2 runs'."""
    return f"{runs} run{'s' if runs != 1 else ''}"


def failures(failed: Sequence["Prepared"], errors: Mapping[str, str], runs: int) -> str:
    """Return which runs have crashed, why, and the files that say so. errors: id -> reason; runs: number of all."""
    from clrun.runs.failures import where_written

    lines = [f"{len(failed)} of {runs} runs crashed; the same command again tries only these:"]
    for prepared in failed:
        lines.append(f"  {errors[prepared.id]}{where_written(prepared.directory)}")
    return "\n".join(lines)


def varying(settings: Sequence[Settings]) -> list[str]:
    """Return the keys of the identity that differ between runs, except the strategy; and those of where data lie."""
    left_out = {"strategy", *SOURCES}  # in one sweep, a class has one source
    keys = dict.fromkeys(
        key
        for run in settings
        for key in run.values
        if key not in left_out and (key not in run.outside_identity or names_data(key))
    )
    return [key for key in keys if len({repr(run.values[key]) for run in settings if key in run.values}) > 1]


def names_data(key: str) -> bool:
    """Return whether a key says what is loaded. Where it is no part of the identity, a digest of the data is."""
    return key == "data_dir" or key.startswith("dataset.")


def show(runs: Sequence["Prepared"], summaries: Mapping[str, "pd.Series"]) -> list[str]:
    """Print a table of the runs, of what differs between them and what they measured; with several seeds also the means
    over them. Return the errors of the disk that kept plots or results.csv from being written.

    summaries: id -> the row of summary.csv.
    """
    if not runs:
        return []
    import pandas as pd

    from clrun.runs import show
    from clrun.terminal import sweep_tables
    from clrun.terminal.console import make_console

    errors = [show.draw_missing_plots(run) for run in runs]
    folders = dict.fromkeys(run.settings["outputs"] for run in runs)
    errors += [show.update_results([run for run in runs if run.settings["outputs"] == folder]) for folder in folders]
    keys = ["strategy", *varying([run.settings for run in runs])]
    texts = [{key: format_value(run.settings[key]) for key in keys if key in run.settings.values} for run in runs]
    table = pd.DataFrame([{**summaries[run.id], **cells} for run, cells in zip(runs, texts, strict=True)])
    table = table.assign(**{key: [cells.get(key, "") for cells in texts] for key in keys})
    console = make_console()
    sweep_tables.runs_table(console, table, keys)
    if "seed" in keys:
        sweep_tables.sweep_table(console, table, keys)
    sweep_tables.best_by_validation(console, table, keys)
    return [str(error) for error in errors if error is not None]


def read_all(runs: Sequence["Prepared"]) -> tuple[dict[str, "pd.Series"], list["UnreadableFile"]]:
    """Return the rows of the summary.csv of finished runs by their ids, and the errors of the runs whose files are
    damaged or contradict each other."""
    from clrun.results import reading, run_files

    summaries: dict[str, pd.Series] = {}
    damaged = []
    for run in runs:
        try:
            reading.refuse_contradiction(run.directory)
            summaries[run.id] = run_files.summary_of(run.directory)
        except reading.UnreadableFile as error:
            damaged.append(error)
    return summaries, damaged


def damages(damaged: Sequence["UnreadableFile"], runs: int) -> str:
    """Return which files of finished runs cannot be read, and what to do. runs: number of all."""
    from clrun.results.reading import BeingTrained

    trained = [error for error in damaged if isinstance(error, BeingTrained)]
    others = [error for error in damaged if not isinstance(error, BeingTrained)]
    lines = []
    if others:
        which = "1 has a damaged file" if len(others) == 1 else f"{len(others)} have damaged files"
        lines += [f"of {counted(runs)}, {which}:", *(f"  {error.path}: {error.cause}" for error in others)]
        advice = (
            "Delete the folder of each and type the same command again, which trains these anew and keeps the others."
        )
        lines += [f"  {advice}"]
    if trained:
        which = "1 is" if len(trained) == 1 else f"{len(trained)} are"
        lines += [f"of {counted(runs)}, {which} being trained again by another process:"]
        lines += [f"  {error.path}: {error.cause}" for error in trained]
        lines += ["  Type the same command again when these are done."]
    return "\n".join(lines)


def tally(runs: int, summaries: Mapping[str, "pd.Series"], failed: int, damaged: int = 0) -> str:
    """Return how the runs have ended, such as "30 runs: 22 done, 5 diverged, 3 crashed or killed."."""
    counts = Counter(str(row["status"]) for row in summaries.values())
    counts["crashed or killed"] = failed
    counts["unreadable"] = damaged
    return f"{counted(runs)}: {', '.join(f'{n} {status}' for status, n in counts.items() if n)}."
