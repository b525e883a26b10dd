"""Write docs/xdk-behaviour.md: python tests/firehose/behaviour [--official PYTHON] [--only PROBE ...]."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2] / "benchmarks")]

from official_xdk import VERSION, install  # noqa: E402
from probes import PROBES  # noqa: E402
from run import OURS, observe  # noqa: E402
from table import DOCUMENT, render  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare xdk.streaming of both sides and write the table.")
    parser.add_argument(
        "--official", help="an interpreter that has the official package; by default one is made"
    )
    parser.add_argument("--only", nargs="+", choices=list(PROBES), help="show these and write nothing")
    args = parser.parse_args()
    official = [args.official or str(install()), "-I"]
    seen: list[dict[str, str]] = []
    for side, python in (("official", official), ("ours", OURS)):
        with ThreadPoolExecutor(2) as pool:
            names = args.only or list(PROBES)
            seen.append(dict(zip(names, pool.map(lambda name: observe(python, name), names), strict=True)))  # noqa: B023
        for name, events in seen[-1].items() if args.only else ():
            sys.stdout.write(f"{name}, {side}: {events}\n")
    if not args.only:
        DOCUMENT.write_text(render(VERSION, *seen), encoding="utf-8")


if __name__ == "__main__":
    main()
