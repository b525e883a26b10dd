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

`make behaviour` writes this page. It runs every probe against the same scripted server on both
sides, each in its own process: the official package (PyPI `xdk` {version}), and `xdk.streaming` of
this repository. A test repeats the probes on this side and compares the results with this page.

A cell lists events in order. `record 1 2`: these records were handed over. `server_error, 503`:
`on_error` was called with an error of this type and status. `waits 0.05`: the delay given to
`on_reconnect`, rounded down to 0.05 s. `raises`: the error that ended the iteration. Retries are
quick: `initial_backoff=0.05, max_backoff=0.4, jitter=False, max_retries=2`. Where a probe has no end
of its own, the server finally answers 404, which ends both sides.

{same} of {all} behaviours are the same. The last column gives the reason for each difference.
"""


def render(version: str, official: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """Return the document; raises ValueError where a difference has no reason, or a reason no difference."""
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
