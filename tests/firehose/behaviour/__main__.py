"""Write docs/xdk-behaviour.md: make behaviour ARGS="[--official PYTHON] [--only PROBE ...]"."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from official_xdk import VERSION, install
from probes import PROBES
from run import OURS, observe
from table import DOCUMENT, render


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare xdk.streaming of both sides and write the table.")
    parser.add_argument(
        "--official", help="an interpreter that has the official package; by default one is made"
    )
    parser.add_argument("--only", nargs="+", choices=list(PROBES), help="show these and write nothing")
    args = parser.parse_args()
    official = [args.official or str(install()), "-E", "-s"]
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
