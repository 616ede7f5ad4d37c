"""`clrun-report`: statistics over the seeds of many runs, as tables and pictures.

runs.py      what is read, and what follows from it for each run
rows.py      runs that differ in nothing but the seed are a row; report.csv
tables.py    rows for readers: terminal, Markdown, LaTeX
compare.py   two rows, paired by seed
pictures.py  rows as pictures
command.py   the command
"""

from clrun.report.command import cli

__all__ = ["cli"]
