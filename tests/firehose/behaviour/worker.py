"""One probe on the ``xdk.streaming`` installed here: python worker.py PROBE URL. Writes what happened as JSON."""

from __future__ import annotations

import json
import logging
import sys
from importlib import import_module

from observe import Trace
from probes import PROBES

if __name__ == "__main__":
    logging.disable()
    trace = Trace(import_module("xdk.streaming"), sys.argv[2])
    PROBES[sys.argv[1]].play(trace)
    sys.stdout.write(json.dumps(trace.events))
