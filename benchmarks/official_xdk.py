"""The official `xdk`, pinned, in a virtual environment of its own: the other side of what is compared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from processes import BenchmarkError

VERSION = "0.10.6"
_PEER = Path(__file__).resolve().parent / "peer"
_PINS = _PEER / "xdk-requirements.txt"
_VENV = _PEER / ".venv-xdk"


def install() -> Path:
    """Install it unless the installed one has these pins; return its interpreter. Raises BenchmarkError."""
    python, marker = _VENV / "bin" / "python", _VENV / "installed"
    if marker.exists() and marker.stat().st_mtime >= _PINS.stat().st_mtime:
        return python
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    for command in ([sys.executable, "-m", "venv", "--clear", str(_VENV)], [*pip, "-r", str(_PINS)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"the official xdk cannot be installed: {done.stderr}")
    marker.touch()
    return python
