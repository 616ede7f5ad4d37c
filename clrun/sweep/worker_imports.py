"""What a worker needs, for the process that workers are forked from: to be imported there, and nowhere else.

Nothing of this is garbage, so Python looks for none meanwhile.
"""

from clrun.system.process import relax_gc

relax_gc()
