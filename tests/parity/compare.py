"""What the official packages offer and this one does not, as a list of differences.

Parameters count as the same where every call that the official package takes is taken here: a parameter that can be
passed by position there can be passed at the same position here, and what may be left out there may be left out here.
More names, parameters and attributes are no difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from inventory import Described

POSITIONAL = "positional or keyword"
ABSENT = "not there"
GIVEN = "'given'"


@dataclass(frozen=True)
class Difference:
    """One difference: where it is, and what is there and here."""

    place: str
    official: str
    ours: str


def compare(official: dict[str, Described], ours: dict[str, Described]) -> list[Difference]:
    """Return how our names differ from the official ones, in the order of the official names."""
    return [
        difference for name, one in official.items() for difference in _of_value(name, one, ours.get(name))
    ]


def _of_value(name: str, official: Described, ours: Described | None) -> Iterator[Difference]:
    if ours is None:
        yield Difference(name, official["kind"], ABSENT)
        return
    if official["kind"] != ours["kind"]:
        yield Difference(name, official["kind"], ours["kind"])
        return
    for literal in official.get("literals", ()):
        if literal not in ours["literals"]:
            yield Difference(f"{name} {literal}", "a value of it", ABSENT)
    yield from _of_parameters(name, official.get("parameters"), ours.get("parameters"))
    if official["kind"] == "class":
        yield from _of_class(name, official, ours)


def _of_class(name: str, official: Described, ours: Described) -> Iterator[Difference]:
    for base in official["bases"]:
        if base != "Generic" and base not in ours["bases"]:
            yield Difference(f"{name} is a {base}", "yes", "no")
    if official["generic"] and not ours["generic"]:
        yield Difference(f"{name}[T]", "generic", "not generic")
    yield from _of_parameters(name, official.get("constructor"), ours.get("constructor"))
    yield from _of_fields(name, official, ours)
    for member, one in official["members"].items():
        other = ours["members"].get(member)
        place = f"{name}.{member}"
        if other is None:
            yield Difference(place, one["kind"], ABSENT)
        elif one["kind"] != other["kind"]:
            yield Difference(place, one["kind"], other["kind"])
        else:
            yield from _of_parameters(place, one.get("parameters"), other.get("parameters"))


def _of_fields(name: str, official: Described, ours: Described) -> Iterator[Difference]:
    for field in official.get("fields", ()):
        if field not in ours.get("fields", ()):
            yield Difference(f"{name}.{field}", "field", ABSENT)
    for group in ("values", "attributes"):
        for key, value in official.get(group, {}).items():
            if group == "attributes" and ours["members"].get(key, {}).get("kind") == "property":
                continue
            there, here = str(value), str(ours.get(group, {}).get(key, ABSENT))
            # What was given to the constructor says only that it is kept.
            if there != here and (there != GIVEN or here == ABSENT):
                yield Difference(f"{name}().{key}" if group == "attributes" else f"{name}.{key}", there, here)


def _of_parameters(place: str, official: Any, ours: Any) -> Iterator[Difference]:
    if official is None or ours is None:
        return
    positions = list(takewhile(lambda name: ours[name].startswith("positional"), ours))
    for position, (name, one) in enumerate(official.items()):
        other = ours.get(name)
        where = f"{place}({name})"
        if one == "any keyword":
            if one not in ours.values():
                yield Difference(f"{place}(**{name})", one, ABSENT)
            continue
        if other is None:
            yield Difference(where, one, ABSENT)
            continue
        (kind, _, default), (our_kind, _, our_default) = (
            one.partition(", default "),
            other.partition(", default "),
        )
        if kind == POSITIONAL and positions[position : position + 1] != [name]:
            yield Difference(where, kind, our_kind)
        if default and default != our_default:
            yield Difference(f"{where} default", default, our_default or "required")
