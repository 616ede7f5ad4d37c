"""Pieces of Markdown."""

import html
import inspect
import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table. A `|` or a line break within a cell does not end the cell."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(in_a_cell, line))} |" for line in lines)


def in_a_cell(text: str) -> str:
    """Return a text as it can stand in a cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")


def code(text: str) -> str:
    """Return a text in the font of code."""
    return f"`{text}`"


def plain(text: str) -> str:
    """Return a text whose asterisks, underscores and brackets are shown as they are. What is in backticks stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_\[\]])", r"\\\1", html.escape(part, False)) for part in parts
    )


def from_docstring(text: str) -> str:
    """Return a docstring as Markdown: lines that are indented by four spaces, such as equations, become code."""
    groups: list[tuple[bool, list[str]]] = []  # whether it is code, and the lines
    for line in inspect.cleandoc(text).splitlines():
        within_code = bool(groups) and groups[-1][0]
        is_code = line.startswith("    ") or (within_code and not line.strip())
        if not groups or is_code != within_code:
            groups.append((is_code, []))
        groups[-1][1].append(line)
    return "\n\n".join(block(is_code, "\n".join(lines)) for is_code, lines in groups)


def block(is_code: bool, text: str) -> str:
    """Return lines of a docstring as a block of code, or as paragraphs."""
    return f"```text\n{inspect.cleandoc(text)}\n```" if is_code else plain(text.strip("\n"))
