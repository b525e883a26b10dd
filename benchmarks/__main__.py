"""Measure everything: python benchmarks [SIDE] [OPTIONS of that script]; the sides are those of `SIDES`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SIDES = ("peers", "server", "client", "firehose", "in_process", "answers", "live_state", "cluster")
# What starts servers is shared with the tests.
SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"


def main(arguments: list[str]) -> int:
    """Run the benchmarks named first, else all of them; return 0 if every one could be measured."""
    sides = SIDES
    if arguments and arguments[0] in SIDES:
        sides, arguments = (arguments[0],), arguments[1:]
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    scripts = (Path(__file__).with_name(f"{side}.py") for side in sides)
    return max(
        subprocess.run([sys.executable, str(script), *arguments], env=environment, check=False).returncode
        for script in scripts
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
