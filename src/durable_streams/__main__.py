"""``python -m durable_streams``: the command line."""

from __future__ import annotations

import sys

from durable_streams.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
