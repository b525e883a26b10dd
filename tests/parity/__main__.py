"""The data and the page of the comparison with the official packages.

python tests/parity record    install the official packages and write what they offer
python tests/parity page      write the list of the page from the data
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "xdk" / "src")]

from page import PAGE, render  # noqa: E402
from record import PACKAGES, record  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare the public names with those of the official packages."
    )
    parser.add_argument("what", choices=["record", "page"])
    if parser.parse_args().what == "record":
        for package in PACKAGES:
            record(package)
    else:
        PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
