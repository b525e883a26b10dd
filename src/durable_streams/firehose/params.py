"""Parameters that follow the length of an outage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from durable_streams.firehose.config import Attempt

__all__ = ["backfill"]


def backfill(
    params: Mapping[str, Any] | None = None, *, name: str = "backfill_minutes", most: int = 5
) -> Callable[[Attempt], Mapping[str, Any]]:
    """Return ``params=`` for a feed that gives back what was missed, as the X API does.

    Args:
        params: The parameters of every attempt; values may be callables, called for each attempt.
        name: The parameter that an attempt after an outage has besides, with the outage's minutes, rounded up.
        most: The most minutes to ask for.

    Returns:
        A callable for ``params=`` of a feed.
    """
    common = dict(params or {})

    def for_attempt(attempt: Attempt) -> Mapping[str, Any]:
        minutes = min(most, math.ceil(attempt.down_for / 60))
        given = {key: value() if callable(value) else value for key, value in common.items()}
        return {**given, name: minutes} if minutes > 0 else given

    return for_attempt
