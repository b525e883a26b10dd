"""Rules of retention as people write them: ``jobs/**=7d,1GiB``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from durable_streams.cli.units import Duration, Size
from durable_streams.server.config import RetentionRule

__all__ = ["RetentionRuleType"]

if TYPE_CHECKING:
    _Rules = click.ParamType[RetentionRule]
else:
    _Rules = click.ParamType  # no generic in older versions of Click

_AGE = Duration(above_zero=True, whole=True)
_SIZE = Size()


class RetentionRuleType(_Rules):
    """A pattern of paths, and how much its streams keep: an age, a size, or both with a comma between them.

    A number with a unit of time is an age (``5m`` is five minutes), every other one is a size.
    """

    name = "rule"
    envvar_list_splitter = ";"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> RetentionRule:
        """Return the rule; raises BadParameter for what is none."""
        if isinstance(value, RetentionRule):
            return value
        pattern, _, limits = str(value).rpartition("=")
        found: dict[str, int] = {}
        for limit in limits.split(","):
            kind, amount = _limit(limit.strip())
            if not pattern or kind is None or kind in found:
                self.fail(
                    f"{value!r} is no rule; it is a pattern with an age, a size or both, 'jobs/**=7d,1GiB'.",
                    param,
                    ctx,
                )
            found[kind] = amount
        return RetentionRule(pattern, found.get("age"), found.get("size"))


def _limit(text: str) -> tuple[str | None, int]:
    """Return what a limit is about, and its amount in seconds or bytes; None for what is no limit."""
    kinds: list[tuple[str, Duration | Size]] = [("size", _SIZE)]
    if not text[-1:].isdigit():
        kinds.insert(0, ("age", _AGE))
    for kind, reader in kinds:
        try:
            return kind, int(reader.convert(text, None, None))
        except click.BadParameter:
            continue
    return None, 0
