"""A run as JSON, and what is made from it: tables between markers, a chart, a comparison with an older run.

    python benchmarks/record.py publish RUN.json     # rewrites the tables of README.md and appends.svg
    python benchmarks/record.py compare OLD.json NEW.json

Needs the standard library alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from html import escape
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

SCHEMA = 1
HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
CHARTED = "64 connections, 100 bytes"
RATE = "appends/s"
AT_LEAST_NOISE = 0.05  # of the median: what one and the same server differs by between two runs

Run = dict[str, Any]


class RecordError(ValueError):
    """A file is not a run of the benchmarks; one sentence says why."""


def row(shape: str, measure: str, server: str, samples: list[float], better: str) -> dict[str, Any]:
    """Return a row: the samples, one for each round, their median, and their spread as a part of it."""
    middle = median(samples)
    spread = (max(samples) - min(samples)) / middle if middle else 0.0
    return {
        "shape": shape,
        "measure": measure,
        "server": server,
        "better": better,
        "samples": samples,
        "median": middle,
        "spread": spread,
    }


def load(path: Path) -> Run:
    """Read a run and check its form."""
    try:
        run: Run = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read as a run: {error}") from error
    check(run, str(path))
    return run


def check(run: Any, name: str = "the run") -> None:
    """Refuse what is not a run of this schema."""
    if not isinstance(run, dict) or run.get("schema") != SCHEMA:
        raise RecordError(f"{name} is not a run of schema {SCHEMA}; record it again with this version")
    for key, kind in (
        ("machine", dict),
        ("versions", dict),
        ("missing", dict),
        ("rounds", int),
        ("rows", list),
    ):
        if not isinstance(run.get(key), kind):
            raise RecordError(f"{name} has no {key}")
    for number, one in enumerate(run["rows"]):
        if not isinstance(one, dict) or not isinstance(one.get("samples"), list) or not one["samples"]:
            raise RecordError(f"{name}: row {number} has no samples")
        if one.get("better") not in ("more", "less", "neither"):
            raise RecordError(f"{name}: row {number} does not say whether more is better")
        if {key for key in ("shape", "measure", "server") if not isinstance(one.get(key), str)}:
            raise RecordError(f"{name}: row {number} does not say what it is of")
        if one != row(one["shape"], one["measure"], one["server"], one["samples"], one["better"]):
            raise RecordError(f"{name}: row {number} is not what its samples give")


def compare(old: Run, new: Run) -> list[str]:
    """Return a sentence for each row that is worse than before by more than the spread of both runs' rounds."""
    before = {_key(one): one for one in old["rows"]}
    found = []
    for now in new["rows"]:
        then = before.get(_key(now))
        if then is None or now["better"] == "neither" or not then["median"] or not now["median"]:
            continue
        ratio = now["median"] / then["median"]
        worse = ratio if now["better"] == "less" else 1 / ratio
        noise = max(then["spread"], now["spread"], AT_LEAST_NOISE)
        if worse > 1 + noise:
            found.append(
                f"{now['server']}, {now['shape']}: {now['measure']} {figure(now['median'])},"
                f" was {figure(then['median'])} ({worse:.2f} times worse, noise {noise:.2f})"
            )
    return found


def _key(one: dict[str, Any]) -> tuple[str, str, str]:
    return one["shape"], one["measure"], one["server"]


def figure(value: float) -> str:
    """Format a number with as many digits as it deserves."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def tables(run: Run) -> str:
    """Return the tables in Markdown: one for each shape, a line for each server, a column for each measure."""
    about = ", ".join(f"{key} {value}" for key, value in run["machine"].items())
    versions = ", ".join(f"{key} {value}" for key, value in run["versions"].items())
    parts = [
        f"{about}.",
        f"{versions}.",
        f"Rounds: {run['rounds']}; ± is the spread of the rounds, highest less lowest.",
    ]
    parts += [f"Not measured: {name}. {why}" for name, why in run["missing"].items()]
    parts = [fill(part, 100, break_long_words=False, break_on_hyphens=False) for part in parts]
    shapes = dict.fromkeys(one["shape"] for one in run["rows"])
    parts += [_table(shape, [one for one in run["rows"] if one["shape"] == shape]) for shape in shapes]
    return "\n\n".join(parts)


def _table(shape: str, rows: list[dict[str, Any]]) -> str:
    measures = list(dict.fromkeys(one["measure"] for one in rows))
    cells = {(one["server"], one["measure"]): _cell(one) for one in rows}
    lines = ["| " + " | ".join([shape, *measures]) + " |", "| --- |" + " --- |" * len(measures)]
    lines += [
        "| " + " | ".join([server, *(cells.get((server, one), "") for one in measures)]) + " |"
        for server in dict.fromkeys(one["server"] for one in rows)
    ]
    return "\n".join(lines)


def _cell(one: dict[str, Any]) -> str:
    spread = f" ± {one['spread']:.0%}" if len(one["samples"]) > 1 else ""
    return figure(one["median"]) + spread


def replace_between(text: str, new: str) -> str:
    """Return a document with what is between the markers replaced."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise RecordError(f"the document has no {BEGIN} with an {END} after it")
    return f"{head}{BEGIN}\n\n{new}\n\n{END}{tail}"


def chart(run: Run, shape: str = CHARTED, measure: str = RATE) -> str:
    """Return bars of one measure as SVG, readable on light and on dark pages."""
    rows = [one for one in run["rows"] if one["shape"] == shape and one["measure"] == measure]
    if not rows:
        raise RecordError(f"the run has no {measure} of {shape!r}, which the chart shows")
    rows.sort(key=lambda one: one["median"], reverse=True)
    widest = max(one["median"] for one in rows)
    lines = []
    for number, one in enumerate(rows):
        y = 44 + 26 * number
        kind = "ours" if one["server"].startswith("ours") else "peer"
        width = max(2.0, 340 * one["median"] / widest)
        lines.append(
            f'<text x="196" y="{y + 13}" text-anchor="end">{escape(one["server"])}</text>'
            f'<rect class="{kind}" x="204" y="{y}" width="{width:.1f}" height="18" rx="3"/>'
            f'<text x="{210 + width:.1f}" y="{y + 13}">{figure(one["median"])}</text>'
        )
    height = 56 + 26 * len(rows)
    title = escape(f"{measure}: {shape}")
    style = (
        "text{font:13px sans-serif;fill:#24292f}.ours{fill:#0969da}.peer{fill:#8c959f}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ours{fill:#4493f8}.peer{fill:#6e7681}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" role="img" aria-label="{title}">'
        f'<style>{style}</style><text x="8" y="24" font-weight="bold">{title}</text>'
        + "".join(lines)
        + "</svg>\n"
    )


def publish(run: Run, readme: Path, svg: Path) -> None:
    """Rewrite the tables of the README and the chart."""
    readme.write_text(replace_between(readme.read_text(), tables(run)))
    svg.write_text(chart(run))


def main() -> int:
    parser = argparse.ArgumentParser(description="Tables, chart and comparison from a recorded run.")
    commands = parser.add_subparsers(dest="command", required=True)
    publishing = commands.add_parser("publish", help="rewrite the tables of README.md and appends.svg")
    publishing.add_argument("run", type=Path)
    comparing = commands.add_parser("compare", help="show what is worse than before beyond the noise")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    args = parser.parse_args()
    try:
        if args.command == "publish":
            publish(load(args.run), HERE / "README.md", HERE / "appends.svg")
            return 0
        found = compare(load(args.old), load(args.new))
    except RecordError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    print("\n".join(found) or "Nothing is worse beyond the noise.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
