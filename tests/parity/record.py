"""Records what the official packages offer: `make parity ARGS=record` installs them and writes `official/*.json`.

Each is installed from PyPI into an environment that is thrown away, and described there by `inventory.py`. It needs a
package index; the test that compares does not.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "official"


@dataclass(frozen=True)
class Package:
    """A release on PyPI, the module of it that users import, and classes that they get without importing them."""

    name: str
    version: str
    module: str
    more: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """Where its inventory is kept."""
        return FOLDER / f"{self.name}-{self.version}.json"


PACKAGES = (
    Package(
        "durable-streams",
        "0.1.0",
        "durable_streams",
        (
            "durable_streams._response:StreamResponse",
            "durable_streams._response:AsyncStreamResponse",
            "durable_streams.astream:AsyncStreamSession",
        ),
    ),
    Package("xdk", "0.10.6", "xdk.streaming"),
)


def record(package: Package) -> None:
    """Install a package, describe it, and write its inventory."""
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        wanted = f"{package.name}=={package.version}"
        subprocess.run([python, "-m", "pip", "install", "--quiet", wanted], check=True)
        # -I: this project's own packages, which have the same import names, stay out of sight.
        command = [str(python), "-I", str(HERE / "inventory.py"), package.module, *package.more]
        printed = subprocess.run(command, check=True, capture_output=True).stdout
    write(
        package.file,
        {
            "release": f"PyPI {wanted}",
            "how": "by inspect, from the installed package",
            "names": json.loads(printed),
        },
    )


def write(path: Path, inventory: dict[str, object]) -> None:
    """Write an inventory so that it reads well and shows changes line by line."""
    path.write_text(json.dumps(inventory, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> dict[str, dict[str, object]]:
    """Return the names of an inventory."""
    names: dict[str, dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))["names"]
    return names
