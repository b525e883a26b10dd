"""Write docs/xdk-behaviour.md: make behaviour ARGS="[--official PYTHON] [--only PROBE ...]"."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from official_xdk import VERSION, install
from probes import PROBES
from run import Ours, observe, official
from table import DOCUMENT, render


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare xdk.streaming of both sides and write the table.")
    parser.add_argument(
        "--official", help="an interpreter that has the official package; by default one is made"
    )
    parser.add_argument("--only", nargs="+", choices=list(PROBES), help="show these and write nothing")
    args = parser.parse_args()
    names = args.only or list(PROBES)
    with Ours() as ours, ThreadPoolExecutor(2) as pool:
        theirs = official([args.official or str(install()), "-E", "-s"])
        seen = {
            "official": dict(zip(names, pool.map(partial(observe, theirs), names), strict=True)),
            "ours": {name: observe(ours, name) for name in names},
        }
    for side in seen if args.only else ():
        for name, events in seen[side].items():
            sys.stdout.write(f"{name}, {side}: {events}\n")
    if not args.only:
        DOCUMENT.write_text(render(VERSION, *seen.values()), encoding="utf-8")


if __name__ == "__main__":
    main()
