"""Imported by the server process from which workers are forked, and nowhere else: see `workers.process_context`.

Imports create no garbage, so Python need not look for any meanwhile.
"""

from clrun.system.garbage_collection import relax_gc

relax_gc()
