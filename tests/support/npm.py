"""Packages from npm for the suites that run under Node: pinned by a lock file, installed once."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

__all__ = ["Failure", "install", "require_node"]


class Failure(Exception):  # noqa: N818 - its message is the whole report
    """A suite could not run; one sentence says why."""


def require_node(*minimum: int) -> str:
    """Return the path of Node of at least this version."""
    wanted = ".".join(map(str, minimum))
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        raise Failure(f"Node.js {wanted} or newer with npm is required and was not found.")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    found = tuple(map(int, re.findall(r"\d+", version)))
    if found < minimum:
        raise Failure(f"Node.js {wanted} or newer is required, found {version or 'none'}.")
    return node


def install(folder: Path) -> None:
    """Install the pinned packages of a folder when there are none or the lock file is newer."""
    marker = folder / "node_modules" / ".package-lock.json"
    if marker.exists() and marker.stat().st_mtime >= (folder / "package-lock.json").stat().st_mtime:
        return
    # Not `npm ci`: it refuses a lock file without the builds for other platforms, which not every registry offers.
    command = [
        "npm",
        "install",
        "--no-save",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--no-progress",
        "--loglevel=error",
    ]
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failure(f"npm install failed:\n{done.stdout}{done.stderr}".rstrip())
    marker.touch()
