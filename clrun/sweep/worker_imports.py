"""Imported by the server process from which workers are forked, and nowhere else: see `workers.process_context`.

What is imported here, torch above all, is imported once for all workers and lies in memory once. Imports create no
garbage, so Python need not look for any meanwhile.
"""

from clrun.system.garbage_collection import relax_gc

relax_gc()

from clrun.results import plots  # noqa: E402
from clrun.runs import prepare, train  # noqa: E402

__all__ = ["plots", "prepare", "train"]
