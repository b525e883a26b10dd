"""The file of contexts: names of servers, each with its URL and the file that holds a token for it.

Invariants: the file is its owner's only (0600) and is replaced as a whole; it holds no token.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click
import msgspec

from durable_streams.protocol.jsonparser import MALFORMED

__all__ = ["Context", "load", "named", "save"]

_FILE = "contexts.json"
_LARGEST = 1 << 20  # bytes of the file, and of a token


class Context(msgspec.Struct, omit_defaults=True):
    """A server: the URL of its streams, and the file that holds a token for it."""

    url: str
    token_file: str | None = None

    def token(self) -> str | None:
        """Return the token; raises ClickException where its file cannot be read."""
        if self.token_file is None:
            return None
        try:
            with Path(self.token_file).open(encoding="ascii") as file:
                token = file.read(_LARGEST).strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
            raise click.ClickException(
                f"the token cannot be read from {self.token_file}: {reason}; write it there, or add the context again"
            ) from error
        if not token:
            raise click.ClickException(f"{self.token_file} holds no token; write it there")
        return token


def _path() -> Path:
    import platformdirs  # noqa: PLC0415 - for this command only

    return Path(platformdirs.user_config_dir("durable-streams")) / _FILE


def load() -> dict[str, Context]:
    """Return all contexts by name; raises ClickException where the file cannot be read."""
    path = _path()
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_LARGEST), type=dict[str, Context])
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}") from error
    except MALFORMED as error:
        raise click.ClickException(
            f"{path} is not what this program wrote ({error}); repair or remove it"
        ) from error


def save(contexts: dict[str, Context]) -> None:
    """Replace the file; raises ClickException where it cannot be written."""
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{_FILE}-")  # with mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(dict(sorted(contexts.items()))), indent=2))
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error


def named(name: str) -> Context:
    """Return the context of a name; raises ClickException where there is none."""
    contexts = load()
    if name not in contexts:
        known = ", ".join(sorted(contexts)) or "there is none yet"
        raise click.ClickException(
            f"there is no context {name!r} ({known}); 'durable-streams context add' makes one"
        )
    return contexts[name]
