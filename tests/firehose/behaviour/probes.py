"""The probes: what each asks of a side, and what the scripted server answers. Either side's interpreter imports this.

A probe's events are text that does not depend on the machine's speed. The last reply serves all further requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from observe import Play
from wire import Reply, answer

__all__ = ["FATAL", "PROBES", "Probe", "probe"]

FATAL = answer(404)
"""Ends a probe that would reconnect forever."""


@dataclass(frozen=True)
class Probe:
    """A row of the table. ``replies`` are made again for each run."""

    name: str
    group: str
    title: str
    replies: Callable[[], list[Reply]]
    play: Play


PROBES: dict[str, Probe] = {}


def probe(
    group: str, title: str, *replies: Reply, fresh: Callable[[], list[Reply]] | None = None
) -> Callable[[Play], Play]:
    """Register a probe; ``fresh`` gives replies that share state within one run."""

    def register(play: Play) -> Play:
        name = play.__name__
        PROBES[name] = Probe(name, group, title, fresh or (lambda: list(replies)), play)
        return play

    return register


for _part in ("surface", "records", "failures", "control"):
    import_module(f"probes_{_part}")  # they register themselves, in the order of the table
