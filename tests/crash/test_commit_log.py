"""A store that sorts its log is killed at any moment: what was acknowledged is there, once, and in order."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from durable_streams.stores.sqlite import SqliteStore

WRITER = """
import asyncio, random, sys
from pathlib import Path
from durable_streams.protocol.commands import Append, Create
from durable_streams.protocol.state import ProducerStamp
from durable_streams.stores.commit_log import LogLimits
from durable_streams.stores.sqlite import SqliteStore

BYTES = "application/octet-stream"
chance = random.Random(int(sys.argv[2]))

async def write(store, number):
    path = f"s{number}"
    state = (await store.create(Create(path, BYTES))).state
    written = b""
    while len(written) < state.tail:
        written += (await store.read(state, len(written), 1 << 20)).payload
    seq = written.count(b"<")
    while True:
        payload = b"<%06d%s>" % (seq, b"." * chance.choice([0, 0, 50, 5000]))
        done = await store.append(path, Append(BYTES, payload, producer=ProducerStamp("p", 0, seq)))
        assert not done.duplicate
        seq += 1
        print(path, seq, flush=True)

async def main():
    limits = LogLimits(max_bytes=200_000, quiet=0.02, step_records=3)
    store = SqliteStore(Path(sys.argv[1]), max_streams=8, log=limits)
    await store.open()
    await asyncio.gather(*[write(store, number) for number in range(20)])

asyncio.run(main())
"""


@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_while_the_log_is_sorted(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    kills: int = request.config.getoption("--log-kills")
    seed: int | None = request.config.getoption("--crash-seed")
    chance = random.Random(random.SystemRandom().randrange(1 << 32) if seed is None else seed)
    acknowledged: Counter[str] = Counter()
    for number in range(kills):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(chance.randrange(1 << 32))]
        with (tmp_path / "output").open("w+") as output, subprocess.Popen(command, stdout=output) as writer:
            # The first one writes something; another one may be killed while it sorts what is left.
            until = time.monotonic() + (60 if number == 0 else chance.uniform(0.3, 1.5))
            while time.monotonic() < until and not (number == 0 and (tmp_path / "output").stat().st_size):
                assert writer.poll() is None, "it ended by itself"
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 0.2))
            writer.kill()
            writer.wait()
            output.seek(0)
            for line in output.read().split("\n")[:-1]:
                path, seq = line.split()
                acknowledged[path] = max(acknowledged[path], int(seq))
    asyncio.run(check(tmp_path, acknowledged))
    assert sum(acknowledged.values()) > 20


async def check(folder: Path, acknowledged: Counter[str]) -> None:
    store = SqliteStore(folder)
    await store.open()
    for path, least in acknowledged.items():
        state = await store.get(path)
        assert state is not None
        written = b""
        while len(written) < state.tail:
            written += (await store.read(state, len(written), 1 << 20)).payload
        numbers = [int(part[1:7]) for part in written.split(b">") if part]
        assert numbers == list(range(len(numbers))), f"{path}: lost, doubled or out of order"
        assert len(numbers) >= least, f"{path}: an acknowledged append is lost"
    await store.close()
