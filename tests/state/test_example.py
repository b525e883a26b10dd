"""The airports of the examples."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import airports

from durable_streams import DurableStream
from durable_streams.state import compact


def test_the_airports_are_those_of_the_flights(handle: DurableStream, tmp_path: Path) -> None:
    path = tmp_path / "airports.db"
    airports.write(handle.url, 150)
    seen = list(airports.watch(handle.url, path, live=False))
    assert len(seen) == 150
    assert list(airports.watch(handle.url, path, live=False)) == []
    airports.write(handle.url, 150)
    compact(handle.url)
    with airports.StreamDB(handle.url, airports.SCHEMA, live=False) as db:
        db.preload()
        found = {code: airport.departures for code, airport in db.airports.items()}
    flights = [json.loads(line)["origin"] for line in airports.FLIGHTS.read_text().splitlines()[:150]]
    assert found == {code: 2 * count for code, count in Counter(flights).items()}
