"""Appends of 100 bytes by callers that are anonymous, that have a key, and that have an EdDSA token."""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from pathlib import Path

import jwt
from appends import BYTES, CONNECTIONS, PATH, STREAMS
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from processes import SQLITE, serving
from results import Plan, Results
from wrk import wrk

from durable_streams.cli.key_editing import add_key
from durable_streams.server.keys import new_key

RATE = "appends/s to 100 streams, by"
PROCESSOR = "server's processor µs an append, by"
GRANT = "create,append,read:**"


def measure(plan: Plan, results: Results) -> None:
    names = ["anonymous", "a key", "a token"]
    with plan.folder() as scratch:
        body = scratch / "body"
        body.write_bytes(b"x" * 100)
        sent, options = callers(scratch)
        for name in reversed(names) if plan.round % 2 else names:
            given = {} if name == "anonymous" else {"authorization": f"Bearer {sent[name]}"}
            with plan.folder() as data, serving(SQLITE, data, options if given else ()) as server:
                load = {"path": PATH, "type": BYTES, "count": STREAMS, **given}
                wrk(server, connections=1, seconds=60, method="PUT", pick="each", limit=STREAMS, **load)
                wrk(server, connections=CONNECTIONS, seconds=1, method="POST", body=body, **load)
                load["body"] = body
                before = processor_seconds(server.pid)
                run = wrk(server, connections=CONNECTIONS, seconds=plan.seconds, method="POST", **load)
                results.add(f"{RATE}|{name}", run.rate)
                spent = processor_seconds(server.pid) - before
                results.add(f"{PROCESSOR}|{name}", spent / run.requests * 1e6)


def processor_seconds(pid: int) -> float:
    """Return what a process has used of the processor: other work on the machine hardly changes that."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def callers(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Return what callers send, and the options of a server that knows them."""
    now = datetime.now(timezone.utc).replace(microsecond=0)
    token, entry = new_key([GRANT], name="benchmark", created=now)
    add_key(folder / "keys.toml", entry)
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "issuer.pem").write_bytes(public)
    signed = jwt.encode({"exp": time.time() + 3600, "ds": [GRANT], "sub": "benchmark"}, private, "EdDSA")
    options = ["--auth", str(folder / "keys.toml"), "--jwt-key", str(folder / "issuer.pem")]
    return {"a key": token, "a token": signed}, options
