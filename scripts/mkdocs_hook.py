"""Fills the pages of docs/reference when MkDocs builds the site (see `hooks` in mkdocs.yml).

A page holds lines such as `<!-- generate: keys.run_keys -->`. Each is replaced by the Markdown that the generator of
that name returns, so that the pages always say what the code does.
"""

import re
from collections.abc import Callable
from typing import Any

from reference import command_line, files, keys, strategies

from clrun.config.catalog import read
from clrun.results.columns import FILES

MARK = re.compile(r"^<!-- generate: (\S+(?: \S+)?) -->$", re.M)


def generators() -> dict[str, Callable[[], str]]:
    """Return the generators by the name that a page calls them."""
    catalog = read()
    return {
        "keys.run_keys": lambda: keys.run_keys(catalog),
        "keys.groups": lambda: keys.groups(catalog),
        "keys.search_keys": keys.search_keys,
        "keys.experiments": lambda: keys.experiments(catalog),
        "command_line.clrun": command_line.clrun,
        "command_line.clrun_report": command_line.clrun_report,
        "command_line.clrun_tune": command_line.clrun_tune,
        "command_line.clrun_predict": command_line.clrun_predict,
        "command_line.clrun_export": command_line.clrun_export,
        "command_line.clrun_check": command_line.clrun_check,
        "command_line.clrun_watch": command_line.clrun_watch,
        "command_line.clrun_verify": command_line.clrun_verify,
        "command_line.rows_of_verify": command_line.rows_of_verify,
        "strategies.sections": lambda: strategies.sections(catalog),
        "files.health_columns": lambda: files.health_columns(catalog),
        **{f"files.columns {file}": lambda file=file: files.columns(file) for file in FILES},
    }


def filled(markdown: str) -> str:
    """Return a page with every mark replaced. Raise KeyError for a mark that no generator has."""
    known = generators()
    return MARK.sub(lambda match: known[match[1]](), markdown)


def on_page_markdown(markdown: str, **page: Any) -> str:
    """Return the Markdown that MkDocs renders: its event for every page."""
    return filled(markdown)
