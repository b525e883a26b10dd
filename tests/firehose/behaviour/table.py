"""The table in docs/xdk-behaviour.md: written from what both sides did, and read by the test that keeps it true."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from probes import PROBES, Probe
from reasons import REASONS
from run import ROOT

__all__ = ["DOCUMENT", "documented", "render"]

DOCUMENT = ROOT / "docs" / "xdk-behaviour.md"
SAME = "the same"
_INTRODUCTION = """\
# What `xdk.streaming` does: the official module and this one

Written by `python tests/firehose/behaviour`, which runs every probe against the same scripted server on both sides,
each in a process of its own: the official package (PyPI `xdk` {version}), and `xdk.streaming` of this repository. A
test of the suite runs ours again and compares it with this page.

How to read a cell: what happened, in order. `record 1 2` are records handed over; `server_error, 503` is an error as
`on_error` got it, with its status; `waits 0.05` is a delay as `on_reconnect` got it, rounded down to 0.05 s; `raises`
is how iteration ended. Retries are quick: `initial_backoff=0.05, max_backoff=0.4, jitter=False, max_retries=2`. Where
a probe has no end of its own, the server answers 404 at last, which is final on both sides.

{same} of {all} behaviours are the same. Where ours differs, the last column says why.
"""


def render(version: str, official: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """Return the document; raises ValueError for a difference that has no reason, or a reason without one."""
    different = {name for name in PROBES if official[name] != ours[name]}
    if different != set(REASONS):
        missing, needless = sorted(different - set(REASONS)), sorted(set(REASONS) - different)
        raise ValueError(f"reasons.py lacks {missing} and needs no {needless}")
    text = _INTRODUCTION.format(version=version, same=len(PROBES) - len(different), all=len(PROBES))
    for group, probes in groupby(PROBES.values(), key=lambda probe: probe.group):
        text += f"\n## {group}\n\n| | official {version} | ours | |\n| --- | --- | --- | --- |\n"
        for probe in probes:
            theirs, mine = official[probe.name], ours[probe.name]
            cells = (theirs, SAME if mine == theirs else mine, REASONS.get(probe.name, ""))
            text += "| " + " | ".join([probe.title, *map(_cell, cells)]) + " |\n"
    return text


def documented(probe: Probe) -> str:
    """Return what the document says that ours does."""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"| {probe.title} | "):
            theirs, mine = line.split(" | ")[1:3]
            return theirs if mine == SAME else mine
    return "nothing"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
