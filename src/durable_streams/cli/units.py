"""Durations and sizes, as people write them: ``5m``, ``1h30m``, ``250ms``; ``64MiB``, ``10MB``, ``4096``.

Invariants: a bare number is seconds, or bytes; what `show_duration` and `show_size` return reads back as the same
value.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

__all__ = ["Duration", "Mode", "Size", "show_duration", "show_mode", "show_size"]

if TYPE_CHECKING:
    _Seconds = click.ParamType[float]
    _Bytes = click.ParamType[int]
else:
    _Seconds = _Bytes = click.ParamType  # no generic in older versions of Click

_SECONDS: dict[str, Decimal | int] = {
    "ms": Decimal("0.001"),
    "s": 1,
    "m": 60,
    "h": 3600,
    "d": 86400,
    "w": 604800,
}
_BYTES: dict[str, int] = {
    unit: factor
    for power, letter in enumerate("kmgt", start=1)
    for unit, factor in (
        (letter, 1024**power),
        (f"{letter}ib", 1024**power),
        (f"{letter}b", 1000**power),
    )
} | {"": 1, "b": 1}

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_PART = re.compile(r"(\d+\.?\d*|\.\d+)\s*([a-z]+)\s*", re.ASCII | re.IGNORECASE)
_SIZE = re.compile(r"(\d+\.?\d*|\.\d+)\s*([a-z]*)", re.ASCII | re.IGNORECASE)
_LONGEST = 64  # characters of a value


class Duration(_Seconds):
    """A time in seconds, with or without a unit (ms, s, m, h, d, w); ``inf`` has no end.

    Args:
        above_zero: Whether 0 is refused.
        whole: Whether only whole seconds will do; the value is an int then, else a float.
        endless: Whether ``inf`` is accepted.
    """

    name = "time"

    def __init__(self, *, above_zero: bool = False, whole: bool = False, endless: bool = False) -> None:
        self._above_zero, self._whole, self._endless = above_zero, whole, endless

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a value, for Click.

        Args:
            value: The text, or a number of seconds.
            param: The option, for the message of an error.
            ctx: The command's context, for the message of an error.

        Returns:
            The seconds.

        Raises:
            BadParameter: It is no duration, or one that the option does not take.
        """
        seconds = value if isinstance(value, (int, float)) else _seconds(str(value).strip())
        if seconds is None or math.isnan(seconds):
            self.fail(
                f"{value!r} is no duration; give seconds, or a unit as in 90s, 5m, 1h30m or 2d.", param, ctx
            )
        if seconds < 0 or (self._above_zero and seconds == 0):
            self.fail(
                f"{value!r} is too short; it must be {'more than' if self._above_zero else 'at least'} 0.",
                param,
                ctx,
            )
        if math.isinf(seconds) and not self._endless:
            self.fail(f"{value!r} is too long.", param, ctx)
        if not self._whole:
            return float(seconds)
        if seconds != int(seconds):
            self.fail(f"{value!r} is not a whole number of seconds.", param, ctx)
        return int(seconds)


class Size(_Bytes):
    """A number of bytes: KiB, MiB, GiB, TiB (or K, M, G, T) count by 1024; kB, MB, GB, TB by 1000.

    Args:
        least: The smallest number that is accepted.
    """

    name = "size"

    def __init__(self, *, least: int = 1) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a value, for Click.

        Args:
            value: The text, or a number of bytes.
            param: The option, for the message of an error.
            ctx: The command's context, for the message of an error.

        Returns:
            The bytes.

        Raises:
            BadParameter: It is no size, or smaller than the option takes.
        """
        size = value if isinstance(value, int) else _size(str(value).strip())
        if size is None:
            self.fail(
                f"{value!r} is no size; give bytes, or a unit as in 512KiB, 64MiB, 10MB or 1GiB.", param, ctx
            )
        if size < self._least or size != int(size):
            self.fail(f"{value!r} is not a whole number of bytes, at least {self._least}.", param, ctx)
        return int(size)


def show_duration(seconds: float) -> str:
    """Return a duration in the largest unit that is exact: ``5ms``, ``30s``, ``2m``.

    Args:
        seconds: The duration in seconds, infinite for ``inf``.

    Returns:
        A text that the option takes, too.
    """
    if not math.isfinite(seconds):
        return "inf"
    if 0 < seconds < 1:
        return f"{seconds * 1000:.10g}ms"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length and seconds % length == 0:
            return f"{seconds / length:.10g}{unit}"
    return f"{seconds:.15g}s"


def show_size(size: int) -> str:
    """Return a size in the largest unit of 1024 that is exact: ``64MiB``, ``1000``.

    Args:
        size: The size in bytes.

    Returns:
        A text that the option takes, too.
    """
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return str(size)


def _seconds(text: str) -> float | None:
    if text.lower() in {"inf", "infinity"}:
        return math.inf
    if len(text) > _LONGEST:
        return None
    if _NUMBER.fullmatch(text):
        return float(text)
    total, place = Decimal(0), 0
    while place < len(text):
        part = _PART.match(text, place)
        factor = _SECONDS.get(part[2].lower()) if part else None
        if part is None or factor is None:
            return None
        total += Decimal(part[1]) * factor
        place = part.end()
    return float(total) if place else None


def _size(text: str) -> Decimal | None:
    match = _SIZE.fullmatch(text) if len(text) <= _LONGEST else None
    factor = _BYTES.get(match[2].lower()) if match else None
    return Decimal(match[1]) * factor if match and factor else None


class Mode(_Bytes):
    """Permissions of a file, in octal digits as chmod takes them."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number that the digits say."""
        if isinstance(value, int):
            return value
        try:
            return int(value, 8)
        except ValueError:
            return self.fail(f"{value!r} is none: three digits of 0 to 7, such as 660", param, ctx)


def show_mode(mode: int) -> str:
    """Return permissions as they are typed."""
    return f"{mode:o}"
