"""What was measured, what it should be, and the table that shows both."""

from __future__ import annotations

import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from processes import PEER_FILES, PEER_MEMORY, scratch
from rich.console import Console
from rich.table import Table


@dataclass
class Plan:
    """How long and in which order to measure."""

    seconds: float
    quick: bool
    peer: bool
    parent: Path | None
    rounds: int = 1
    round: int = 0

    def servers(self, *names: str) -> Iterator[str]:
        """Yield the servers of one measurement; every other round goes backwards."""
        wanted = [name for name in names if self.peer or name not in (PEER_FILES, PEER_MEMORY)]
        yield from reversed(wanted) if self.round % 2 else wanted

    def folder(self) -> AbstractContextManager[Path]:
        """Return a new scratch folder."""
        return scratch(self.parent)


@dataclass
class Results:
    """Samples by name, one per round."""

    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, value: float) -> None:
        self.samples[name].append(value)

    def median(self, name: str) -> float | None:
        return median(self.samples[name]) if self.samples.get(name) else None


@dataclass(frozen=True)
class Target:
    """One line of the table: a measurement, ours against another (or alone), and the limit of the ratio."""

    title: str
    measurement: str
    ours: str
    other: str | None
    limit: float
    at_least: bool = True

    def judge(self, results: Results) -> Verdict | None:
        """Return what came out, or None when it was not measured."""
        mine = results.median(f"{self.measurement}|{self.ours}")
        if mine is None:
            return None
        theirs = None if self.other is None else results.median(f"{self.measurement}|{self.other}")
        if self.other is not None and theirs is None:
            return None
        value = mine if theirs is None else mine / theirs
        met = value >= self.limit if self.at_least else value <= self.limit
        return Verdict(self, mine, theirs, value, met)


@dataclass(frozen=True)
class Verdict:
    """A target and the medians it was judged by."""

    target: Target
    mine: float
    theirs: float | None
    value: float
    met: bool

    def cells(self) -> tuple[str, ...]:
        target = self.target
        sign = "≥" if target.at_least else "≤"
        unit = "" if self.theirs is not None else " " + target.measurement.rsplit(" ", 1)[-1]
        value = "" if self.theirs is None else f"{self.value:.2f}"
        other = "" if self.theirs is None else f"{figure(self.theirs)} ({target.other})"
        verdict = "[green]pass[/]" if self.met else "[red]miss[/]"
        mine = f"{figure(self.mine)} ({target.ours})"
        return target.title, mine, other, value, f"{sign} {target.limit:g}{unit}", verdict


def figure(value: float) -> str:
    """Format a number with as many digits as it deserves."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(console: Console, verdicts: list[Verdict], caption: str, peer: str) -> None:
    table = Table(title=f"Durable Streams: ours against the {peer}", caption=caption)
    table.add_column("measurement")
    table.add_column("ours", justify="right")
    table.add_column("against", justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("target", justify="right")
    table.add_column("")
    for verdict in verdicts:
        table.add_row(*verdict.cells())
    console.print(table)


def show_samples(console: Console, results: Results) -> None:
    table = Table(title="Samples", caption="median, lowest and highest of all rounds")
    for title in ("measurement", "who", "median", "lowest", "highest", "rounds"):
        table.add_column(title, justify="left" if title in ("measurement", "who") else "right")
    for name, values in sorted(results.samples.items()):
        measurement, server = name.split("|")
        table.add_row(
            measurement,
            server,
            figure(median(values)),
            figure(min(values)),
            figure(max(values)),
            str(len(values)),
        )
    console.print(table)


def write(path: Path, machine: dict[str, object], results: Results, verdicts: list[Verdict]) -> None:
    """Write everything as JSON."""
    targets = [
        {
            "title": verdict.target.title,
            "ours": verdict.mine,
            "against": verdict.theirs,
            "value": verdict.value,
            "limit": verdict.target.limit,
            "at_least": verdict.target.at_least,
            "met": verdict.met,
        }
        for verdict in verdicts
    ]
    document = {"machine": machine, "targets": targets, "samples": dict(results.samples)}
    path.write_text(json.dumps(document, indent=2) + "\n")


def report(
    console: Console,
    results: Results,
    targets: list[Target],
    against: str,
    *,
    about: dict[str, object] | None = None,
    notes: dict[str, str] | None = None,
    output: Path | None = None,
) -> None:
    """Show what was measured and what was wanted, and write it to ``output`` where given."""
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "Python": platform.python_version(),
        **(about or {}),
    }
    verdicts = [verdict for target in targets if (verdict := target.judge(results)) is not None]
    show_samples(console, results)
    if verdicts:
        about_it = ", ".join(f"{key} {value}" for key, value in machine.items())
        show(console, verdicts, about_it, against)
    for name, note in (notes or {}).items():
        console.print(f"{name}: {note}.", highlight=False)
    if output:
        write(output, machine if notes is None else {**machine, "notes": notes}, results, verdicts)
