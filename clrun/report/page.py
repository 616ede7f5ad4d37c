"""The page of a report: one HTML file with tables and charts, which needs no server and no network.

The page is made of the files in clrun/report/html, of the library plotly.js, which the Python package plotly brings,
and of the data of `clrun.report.page_data` as JSON. It opens by a double click.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clrun.report.page_data import page_data
from clrun.report.rows import Row
from clrun.system import atomic_files
from clrun.system.errors import UsageError
from clrun.system.paths import PACKAGE

SOURCES = PACKAGE / "report" / "html"
SCRIPTS = (
    "elements.js",
    "statistics.js",
    "tables.js",
    "charts.js",
    "confusion.js",
    "comparison.js",
    "glance.js",
    "progress.js",
    "main.js",
)

NAME = "report.html"  # in the folder of results, where no other is typed


def page_path(folder: Path, typed: str) -> Path:
    """Return where the page is written. typed: what follows --html; "" for the folder of results. Raise UsageError
    where that cannot be the name of a page, or where plotly is not installed."""
    path = Path(typed).expanduser() if typed else folder / NAME
    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(
            f"--html {typed or path}: the name of a page ends in .html; type clrun-report {folder} --html, or name "
            f"such a file, and the folder of results before it: clrun-report FOLDER --html page.html."
        )
    if path.parent.exists() and not path.parent.is_dir():
        raise UsageError(f"--html {typed}: {path.parent} is a file; name a page in a folder.")
    plotly_script()
    return path


def plotly_script() -> str:
    """Return the JavaScript of plotly. Raise UsageError if the package is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        raise UsageError(
            "--html draws its charts with plotly, which is not installed here; type pip install 'clrun[html]'."
        ) from None
    return str(get_plotlyjs())


def write(path: Path, folder: Path, rows: Sequence[Row], measure: str) -> int:
    """Write the page of the rows of a report, all or nothing, and return its bytes. Raise OSError.

    folder: of the results; measure: the one that is shown first.
    """
    return write_data(path, folder, page_data(folder, rows, measure, path.resolve().parent))


def write_data(path: Path, folder: Path, data: Mapping[str, Any]) -> int:
    """Write the page with these data, all or nothing, and return its bytes. Raise OSError."""
    atomic_files.write_text(path, page(data, f"clrun: {folder.resolve().name}"))
    return path.stat().st_size


def page(data: Mapping[str, Any], title: str) -> str:
    """Return the page as HTML. Text of the user's is in the JSON alone, but for the title, which is escaped."""
    parts = {
        "TITLE": html.escape(title),
        "STYLE": source("page.css"),
        "PLOTLY": plotly_script(),
        "DATA": as_json(data),
        "SCRIPT": "\n".join(source(name) for name in SCRIPTS),
    }
    text = source("page.html")
    for name, content in parts.items():
        before, after = text.split(f"<!-- {name} -->")
        text = before + content + after
    return text


def source(name: str) -> str:
    """Return one of the files of which the page is made."""
    return (SOURCES / name).read_text(encoding="utf-8")


def as_json(data: Any) -> str:
    """Return data as JSON that may stand in an element of HTML: no `<` ends the element, and nan is null."""
    text = json.dumps(plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def plain(data: Any) -> Any:
    """Return data without nan and infinities, which JSON does not have, and without types of NumPy."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    value = data.item() if hasattr(data, "item") else data
    return None if isinstance(value, float) and not math.isfinite(value) else value
