"""Probes on the ``xdk.streaming`` installed here, each in a process of its own that writes what happened as JSON.

python worker.py PROBE URL plays one. Without arguments it plays those whose names and URLs it reads, a line each, in
processes that it forks: what they import is imported once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from importlib import import_module

from observe import Trace
from probes import PROBES


def play(name: str, url: str) -> list[str]:
    trace = Trace(import_module("xdk.streaming"), url)
    PROBES[name].play(trace)
    return trace.events


def serve() -> None:
    for library in ("xdk.streaming", "requests", "httpx", "pydantic"):
        import_module(library)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                sys.stdout.write(json.dumps(play(*line.split())))
            except BaseException as error:  # noqa: BLE001 - as an interpreter of its own would end
                sys.stdout.write(json.dumps("".join(traceback.format_exception_only(error))))
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    logging.disable()
    if sys.argv[1:]:
        sys.stdout.write(json.dumps(play(*sys.argv[1:])))
    else:
        serve()
