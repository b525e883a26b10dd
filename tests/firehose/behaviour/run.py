"""Run probes on one side: a worker in that side's interpreter against a scripted server in this one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from probes import PROBES
from scripted import Received, ScriptedServer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
WITHIN = 60.0  # seconds; a busy machine is no difference


OURS = [sys.executable]


def observe(python: list[str], name: str) -> str:
    """Return what happened on the side whose interpreter this is, in one line; OURS is the one of this repository."""
    probe = PROBES[name]
    replies = probe.replies()
    server = ScriptedServer(replies) if replies else ScriptedServer(answer=_echo)
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    if python is OURS:
        environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / path) for path in ("xdk/src", "src"))
    try:
        done = subprocess.run(
            [*python, str(HERE / "worker.py"), name, server.root + "/feed"],
            capture_output=True,
            text=True,
            check=False,
            timeout=WITHIN,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return "does not end"
    finally:
        server.stop()
    if done.returncode:
        return "fails: " + (done.stderr.strip().splitlines() or ["killed"])[-1]
    return _port_free("; ".join(json.loads(done.stdout)))


def _port_free(text: str) -> str:
    return re.sub(r"127\.0\.0\.1:\d+", "HOST", text)


def _echo(request: Received) -> bytes:
    headers = request.headers
    echo = {
        "method": request.method,
        "target": request.target,
        "body": request.body,
        **{name: headers.get(name) for name in ("authorization", "cookie", "x-mine", "content-type")},
    }
    if "show" in request.query:
        echo = {"header": headers.get(request.query["show"])}
    return ScriptedServer.response(200, json.dumps(echo).encode() + b"\n", Connection="close")
