"""The tables of docs/reference/files.md, from the columns that clrun/results/columns.py describes."""

from clrun.results.columns import FILES

from clrun.config.catalog import Catalog
from reference import health
from reference.markdown import code, plain, table


def columns(file: str) -> str:
    """Return the table of the columns of a file."""
    return table(("column", "meaning"), [(code(name), plain(text)) for name, text in FILES[file].items()])


def health_columns(catalog: Catalog) -> str:
    """Return the table of the columns that strategies add to health.csv."""
    rows = [(code(column), meaning, strategies_with(column)) for column, meaning in health.MEANINGS.items()]
    return table(("column", "meaning", "strategies"), rows)


def strategies_with(column: str) -> str:
    """Return the strategies that write a column."""
    return ", ".join(code(name) for name, columns in health.COLUMNS.items() if column in columns)
