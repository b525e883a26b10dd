"""bench: what it counts is what happened, and nothing of it stays."""

from __future__ import annotations

import json

import pytest

from durable_streams.cli.load import Rung, Times, saturated_at


def measured(cli, *options: str) -> dict:
    return json.loads(cli.ok("bench", "--time", "200ms", "--json", *options))


def test_each_rung_is_measured_and_the_stream_goes(cli):
    result = measured(cli, "--ladder", "1,3", "--readers", "2", "--size", "64")
    assert [rung["writers"] for rung in result["rungs"]] == [1, 3]
    for rung in result["rungs"]:
        assert rung["errors"] == {}
        assert rung["appends"] > 0
        assert rung["deliveries"] == 2 * rung["appends"], "each reader got each message once"
        times = rung["append_ms"]
        assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["p99.9"] <= times["max"]
        assert rung["delivery_ms"]["max"] > 0
        assert rung["appends_per_second"] == pytest.approx(rung["appends"] / rung["seconds"], rel=0.01)
    assert result["url"].startswith(f"{cli.root}/bench-")
    assert cli.ok("ls") == b""


def test_producers_store_every_message_once(cli):
    [first, second] = measured(cli, "--ladder", "2,2", "--producers", "--readers", "1")["rungs"]
    for rung in (first, second):
        assert rung["errors"] == {}
        assert rung["deliveries"] == rung["appends"] > 0


def test_a_table_for_people(cli):
    lines = cli.ok("bench", "--time", "50ms", "--ladder", "1,2").decode().splitlines()
    assert lines[0].split()[:2] == ["writers", "appends/s"]
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    assert "writers" in lines[3]


def test_mistakes_are_named(cli):
    assert "--ladder" in cli.error("bench", "--ladder", "1,x", code=2)
    assert "no ladder" in cli.error("bench", "--ladder", "0", code=2)
    assert "--size" in cli.error("bench", "--size", "1GiB", code=2)
    assert "1:1" in cli.error("bench", "--url", "http://127.0.0.1:1:1/v1/stream")


@pytest.mark.parametrize(
    ("count", "p50", "p99"), [(1, 1, 1), (2, 1, 2), (100, 50, 99), (101, 51, 100), (1000, 500, 990)]
)
def test_a_percentile_is_a_time_that_was_measured(count: int, p50: int, p99: int) -> None:
    times = Times()
    for milliseconds in range(count, 0, -1):
        times.add(milliseconds / 1000)
    found = times.summary()
    assert (found["p50"], found["p99"], found["max"]) == (p50, p99, count)
    assert Times().summary() == {}


@pytest.mark.parametrize(
    ("rates", "saturated"),
    [
        ([], None),
        ([5], None),
        ([5, 10, 20], None),
        ([5, 10, 10.5], 1),
        ([5, 10, 9, 20], None),
        ([5, 5, 5], 0),
    ],
)
def test_saturation_is_where_more_writers_bring_no_more(rates: list[float], saturated: int | None) -> None:
    rungs = [Rung(at, 1.0, round(rate * 100), {}, {}, 0, {}) for at, rate in enumerate(rates)]
    assert saturated_at(rungs) == saturated
