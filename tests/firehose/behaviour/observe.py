"""What one side did, as text that is the same in every run. Standard library only: either interpreter imports it."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

QUICK = {"initial_backoff": 0.05, "max_backoff": 0.4, "jitter": False, "max_retries": 2}


@dataclass
class Trace:
    """A side under observation: its ``xdk.streaming`` as ``s``, the server's ``url``, and what happened."""

    s: Any
    url: str
    events: list[str] = field(default_factory=list)

    def note(self, *words: object) -> None:
        self.events.append(" ".join(map(str, words)))

    def got(self, item: Any) -> None:
        """Note a record, joined with those just before it."""
        shown = name_of(item)
        if self.events and self.events[-1].startswith("record "):
            self.events[-1] += f" {shown}"
        else:
            self.note("record", shown)

    def config(self, **settings: Any) -> Any:
        """Return a StreamConfig with quick retries that notes errors and waits."""
        return self.quiet(
            **{
                "on_error": lambda error: self.note(describe(error)),
                "on_reconnect": lambda _, delay: self.note(f"waits {floored(delay)}"),
                **settings,
            }
        )

    def loud(self, **settings: Any) -> Any:
        """Return a StreamConfig with quick retries that notes every callback."""
        return self.quiet(
            on_connect=lambda: self.note("on_connect"),
            on_disconnect=lambda error: self.note(f"on_disconnect({describe(error)})"),
            on_reconnect=lambda attempt, delay: self.note(f"on_reconnect({attempt}, {floored(delay)})"),
            on_error=lambda error: self.note(f"on_error({describe(error)})"),
            **settings,
        )

    def quiet(self, **settings: Any) -> Any:
        """Return a StreamConfig with quick retries."""
        return self.s.StreamConfig(**{**QUICK, **settings})

    def open(self, session: Any = None, url: str | None = None, config: Any = None, **arguments: Any) -> Any:
        import requests

        return self.s.stream_with_retry(
            session or requests.Session(), "get", url or self.url, config or self.config(), **arguments
        )

    def run(self, most: int | None = None, **arguments: Any) -> BaseException | None:
        """Read to the end, or this many records; note them and how it ended; return what was raised."""
        try:
            stream = self.open(**arguments)
            for count, item in enumerate(stream, 1):
                self.got(item)
                if count == most:
                    break
            else:
                self.note("ends")
        except BaseException as error:  # noqa: BLE001 - it is what is observed
            if self.events[-1:] == [describe(error)]:
                self.events.pop()  # on_error has just reported the same
            self.note(f"raises {describe(error)}")
            return error
        stream.close()
        return None

    def took(self, seconds: float, limit: float, soon: str, late: str) -> None:
        """Note which words fit a time."""
        self.note(soon if seconds <= limit else late)


def floored(delay: float) -> str:
    """Return a wait rounded down to steps of 0.05 s: some are spread at random."""
    return f"{math.floor(delay * 20 + 1e-9) / 20:g}"


def name_of(item: Any) -> str:
    """Return how a record is shown: by its id if it is one, by its type if it is no dict."""
    if isinstance(item, dict):
        with contextlib.suppress(KeyError, TypeError):
            return str(item["data"]["id"])
        return json.dumps(item)
    if hasattr(item, "data"):
        return f"{type(item).__name__}({item.data['id'] if isinstance(item.data, dict) else item.data.id})"
    return repr(item)


def describe(error: Any) -> str:
    """Return an error as text: a StreamError by its type and status, another by its class."""
    if error is None:
        return "None"
    kind = getattr(error, "error_type", None)
    if kind is None:
        return type(error).__name__
    refused = error.status_code is not None and error.status_code >= 300
    status = f", {error.status_code}" if refused else ""
    return f"{kind.value}{status}"


Play = Callable[[Trace], object]
