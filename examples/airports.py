"""Airports as rows of a stream: flights change them, any number of programs follow them.

durable-streams serve
python examples/airports.py write      # some real flights, one after the other
python examples/airports.py watch      # what changes, into airports.db, until Ctrl-C; start it again, and it goes on
python examples/airports.py compact    # a new reader needs the present rows only
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from durable_streams import DurableStream, SyncIdempotentProducer
from durable_streams.state import Collection, StateSchema, StreamDB, compact

URL = "http://127.0.0.1:4437/v1/stream/airports"
FLIGHTS = Path(__file__).parent.parent / "data" / "us-flights-2001.ndjson"


class Airport(msgspec.Struct):
    """What is known of an airport: its departures, and their delay in minutes."""

    code: str
    departures: int = 0
    delay: int = 0


SCHEMA = StateSchema(airports=Collection(Airport, type="airport", key="code"))


def write(url: str = URL, flights: int = 2000) -> None:
    """Write how flights change their airports, from what the stream holds already."""
    DurableStream.create(url, content_type="application/json")
    with StreamDB(url, SCHEMA, live=False) as db:
        db.preload()
        airports = dict(db.airports.items())
    with FLIGHTS.open() as lines, SyncIdempotentProducer(url, "airports", auto_claim=True) as producer:
        for line, _ in zip(lines, range(flights), strict=False):
            flight = json.loads(line)
            airport = airports.setdefault(flight["origin"], Airport(flight["origin"]))
            airport.departures += 1
            airport.delay += max(0, flight["delay"])
            producer.put(SCHEMA.airports.upsert(airport))


def watch(url: str = URL, path: str | Path = "airports.db", *, live: bool = True) -> Iterator[str]:
    """Yield what changes, one line for each flight."""
    with StreamDB(url, SCHEMA, path=path, live=live) as db:
        for change in db.changes():
            now: Airport = change.new
            yield f"{now.code}: {now.departures} departures, {now.delay / now.departures:.1f} minutes late"


def main() -> None:
    """Do what the command line asks for."""
    match sys.argv[1:]:
        case ["write"]:
            write()
        case ["watch"]:
            for line in watch():
                print(line)
        case ["compact"]:
            print(compact(URL))
        case _:
            print(__doc__)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
