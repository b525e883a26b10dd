"""The data and the page of the comparison with the official packages.

make parity ARGS=record    install the official packages and write what they offer
make parity ARGS=page      write the list of the page from the data
"""

from __future__ import annotations

import argparse

from page import PAGE, render
from record import PACKAGES, record


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
