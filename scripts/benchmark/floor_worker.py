"""The floor as a process; see worker.py. With a file of specs as an argument: those, one after another."""

import json
import sys
from pathlib import Path

from benchmark.worker import one_thread, serve

if __name__ == "__main__":
    one_thread()
    from benchmark import floor

    if len(sys.argv) > 1:
        for spec in json.loads(Path(sys.argv[1]).read_text()):
            floor.run(spec)
    else:
        serve(floor.run)
