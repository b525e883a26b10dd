"""SIGHUP: the files of the configuration are read at once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from datetime import datetime, timezone
from pathlib import Path

import httpx
import pytest

from durable_streams.server import ServerConfig, run, toml
from durable_streams.server.keys import new_key
from durable_streams.testing.program import wait_until


def test_a_new_key_holds_from_the_signal_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toml, "_LOOK_EVERY", 3600.0)  # nobody else looks
    path = tmp_path / "keys.toml"
    path.write_text("")
    secret, entry = new_key(["list:**"], created=datetime.now(timezone.utc))
    seen: list[int] = []

    def ask(root: str) -> None:
        def status() -> int:
            return httpx.get(
                f"{root}/__ds/streams", headers={"authorization": f"Bearer {secret}"}
            ).status_code

        try:
            path.write_text(f'[[key]]\nsha256 = "{entry.sha256}"\nallow = ["list:**"]\n')
            seen.append(status())
            os.kill(os.getpid(), signal.SIGHUP)
            seen.append(wait_until(lambda: status() == 200, 60))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def ready(root: str) -> None:
        asking.append(threading.Thread(target=ask, args=(root,)))
        asking[0].start()

    asking: list[threading.Thread] = []
    asyncio.run(run._serve_until_signalled(ServerConfig(port=0, auth=path), ready, None))
    asking[0].join()
    assert seen == [401, True]
