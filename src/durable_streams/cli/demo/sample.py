"""What the demo writes: the records of a file, the sample of a checkout, or records made on the spot."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import Path

import click
import msgspec

from durable_streams.cli.ndjson import flaw_of, records

__all__ = ["load"]

_SAMPLE = Path("data", "us-flights-2001.ndjson")
_MADE = 5_000  # records
_AIRPORTS = ("ATL", "DEN", "DTW", "HNL", "JFK", "LAS", "LAX", "OAK", "ORD", "SEA", "SFO")


def load(path: Path | None) -> list[bytes]:
    """Return the records to write, each one JSON text.

    Args:
        path: An NDJSON file. None: the flight records that a checkout of the project has; in an installation
            without them, 5,000 records of the same kind, the same ones in every run.

    Returns:
        The records in order; at least one.

    Raises:
        click.ClickException: The file holds no records, or a line of it is not valid JSON.
    """
    if path is not None:
        return _read(path)
    sample = Path(__file__).resolve().parents[4] / _SAMPLE
    return _read(sample) if sample.exists() else _made()


def _read(path: Path) -> list[bytes]:
    messages = []
    with path.open("rb") as file:
        for record in records(file):
            flaw = flaw_of(record.message)
            if flaw is not None:
                raise click.ClickException(
                    f"{path}, line {record.line}, is not valid JSON: {flaw}; fix or remove it."
                )
            messages.append(record.message)
    if not messages:
        raise click.ClickException(f"{path} holds no records; give an NDJSON file with at least one.")
    return messages


def _made() -> list[bytes]:
    chance = random.Random(2001)  # noqa: S311 - not for secrets
    date = datetime(2001, 1, 1)  # noqa: DTZ001 - local times, as in the sample
    made = []
    for _ in range(_MADE):
        date += timedelta(minutes=chance.randrange(60))
        origin, destination = chance.sample(_AIRPORTS, 2)
        flight = {
            "date": date.strftime("%Y/%m/%d %H:%M"),
            "delay": chance.randrange(-20, 120),
            "distance": chance.randrange(200, 4_000),
            "origin": origin,
            "destination": destination,
        }
        made.append(msgspec.json.encode(flight))
    return made
