"""top: which streams grow, and how fast."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from durable_streams import StreamInfo
from durable_streams.cli.top import Busy, busiest


def look(**sizes: int) -> dict[str, StreamInfo]:
    return {
        path: StreamInfo(path, "text/plain", "9", "0", size, created="then") for path, size in sizes.items()
    }


def test_the_fastest_come_first():
    before, after = look(a=10, b=0, c=5), look(a=10, b=100, c=25, d=40)
    assert busiest(before, after, 2.0, 2) == [Busy("b", 50.0, 100, False), Busy("d", 20.0, 40, False)]
    assert [one.path for one in busiest(before, after, 2.0, 9)] == ["b", "d", "c"]


def test_what_was_created_again_counts_from_its_beginning():
    before, after = look(a=100), look(a=30)
    assert busiest(before, after, 1.0, 9) == [Busy("a", 30.0, 30, False)]
    after = {"a": replace(look(a=130)["a"], created="now")}
    assert busiest(before, after, 1.0, 9) == [Busy("a", 130.0, 130, False)]
    assert busiest(before, {}, 1.0, 9) == []


def test_the_command_sees_what_is_written_meanwhile(cli):
    cli.ok("create", "quiet", "-t", "text", "x")
    cli.ok("create", "busy", "-t", "text", "x")
    process = cli.spawn("top", "--interval", "100ms", "--json")
    seen: list[dict[str, Any]] = []
    while not seen:
        cli.ok("append", "busy", "12345")
        seen = json.loads(process.stdout.readline())["busiest"]
    process.terminate()
    assert [one["path"] for one in seen] == ["busy"]
    assert seen[0]["bytes_per_second"] > 0
    assert cli.ok("top", "--once", "--interval", "1ms").startswith(b"2 streams")
