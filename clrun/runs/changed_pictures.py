"""What has changed in a folder of pictures since an earlier run of the same settings."""

import glob
from pathlib import Path

from clrun.results import picture_counts
from clrun.results.run_files import write_table
from clrun.runs.prepared import Prepared


def write_counts(prepared: Prepared) -> None:
    """Write pictures.csv of a run on a folder of pictures."""
    if prepared.images.folder is not None:
        table = picture_counts.picture_table(prepared.images.folder.classes, prepared.settings.identity(""))
        write_table(prepared.directory / picture_counts.NAME, table)


def since(prepared: Prepared, directory: Path) -> list[str]:
    """Return what has changed since the run in a directory was trained; empty if its settings are not the run's."""
    before = picture_counts.read_counts(directory)
    if before is None or prepared.images.folder is None or before[1] != prepared.settings.identity(""):
        return []
    now = {(one.part, one.name): (one.pictures, one.digest) for one in prepared.images.folder.classes}
    return picture_counts.changes(before[0], now)


def since_an_earlier_run(prepared: Prepared) -> str | None:
    """Return what has changed since the latest run of the same settings, as a sentence; None if there is none."""
    here = prepared.directory
    if prepared.images.folder is None or here.exists():
        return None
    stem = glob.escape(here.name.rpartition("-")[0])  # the folder's name but for the identity
    others = [path.parent for path in here.parent.glob(f"{stem}-*/{picture_counts.NAME}")]
    for directory in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        changes = since(prepared, directory)
        if changes:
            return f"The pictures are not those of {directory.name}: {', '.join(changes)}. This is a new run."
    return None
