"""The official `xdk`, pinned, in a virtual environment of its own: the other side of what is compared."""

from __future__ import annotations

from pathlib import Path

from processes import HERE, install_pinned

VERSION = "0.10.6"
_PEER = HERE / "peer"


def install() -> Path:
    """Return the interpreter that has it. Raises BenchmarkError."""
    return install_pinned("the official xdk", _PEER / "xdk-requirements.txt", _PEER / ".venv-xdk")
