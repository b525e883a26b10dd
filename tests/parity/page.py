"""The comparison as it stands, and the page that shows it.

`differences.json` lists the deliberate differences: places, and why. The page `docs/coming-from-the-official-client.md`
has a part written by hand and, below the mark, a table made of that list.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module

from compare import Difference, compare
from inventory import describe
from record import FOLDER, HERE, load

PAGE = HERE.parents[1] / "docs" / "coming-from-the-official-client.md"
LIST = HERE / "differences.json"
MARK = "<!-- Below: made from tests/parity/differences.json by `make parity ARGS=page`. -->\n"
# Classes that users are given but do not make themselves, under the names that they have officially.
GIVEN = {
    "durable_streams": {
        "AsyncStreamResponse": "durable_streams:AsyncStreamResponse",
        "AsyncStreamSession": "durable_streams.client.aio_response:Opening",
        "StreamResponse": "durable_streams:StreamResponse",
    },
    "xdk.streaming": {},
}
INVENTORIES = {
    "durable-streams-0.1.0.json": "durable_streams",
    "durable-streams-git.json": "durable_streams",
    "xdk-0.10.6.json": "xdk.streaming",
}


@dataclass(frozen=True)
class Entry:
    """Deliberate differences that have one reason."""

    places: tuple[str, ...]
    why: str


def differences() -> dict[str, Difference]:
    """Return how this project differs from the official packages, by place."""
    found: dict[str, Difference] = {}
    for file, module in INVENTORIES.items():
        ours = describe(import_module(module), GIVEN[module])
        for difference in compare(load(FOLDER / file), ours):
            found.setdefault(difference.place, difference)
    return found


def entries() -> list[Entry]:
    """Return the list of deliberate differences."""
    listed = json.loads(LIST.read_text(encoding="utf-8"))
    return [Entry(tuple(entry["places"]), entry["why"]) for entry in listed]


def render() -> str:
    """Return the page: what is written by hand, and the table."""
    by_hand, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    assert mark, f"{PAGE} has lost its mark"
    found = differences()
    rows = ["| where | official | here | why |", "| --- | --- | --- | --- |"]
    for entry in entries():
        first = found[entry.places[0]]
        places = "<br>".join(f"`{place}`" for place in entry.places)
        rows.append(f"| {places} | {first.official} | {first.ours} | {entry.why} |")
    return by_hand + mark + "\n" + "\n".join(rows) + "\n"
