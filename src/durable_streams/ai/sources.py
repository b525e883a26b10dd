"""What an answer is made from: any iterator, asynchronous or not, as one kind of asynchronous iterator.

Invariants: a source is closed on every way out; a synchronous one runs in a worker thread, one step at a time, so that
it never stops the event loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from typing import Any

__all__ = ["items_of"]

_END = object()


async def items_of(source: Any) -> AsyncGenerator[Any, None]:
    """Yield the items of a source: an iterable of either kind, or a function that returns one (it may be async).

    Raises TypeError for what cannot be iterated over.
    """
    if not isinstance(source, (AsyncIterable, Iterable)) and callable(source):
        source = source()
    if inspect.isawaitable(source):
        source = await source
    if isinstance(source, AsyncIterable):
        found = aiter(source)
        try:
            async for item in found:
                yield item
        finally:
            close = getattr(found, "aclose", None) or getattr(source, "aclose", None)
            if close is not None:
                await close()
    elif isinstance(source, Iterable) and not isinstance(source, (str, bytes, dict)):
        each = iter(source)
        try:
            while (item := await _step(each)) is not _END:
                yield item
        finally:
            finish = getattr(each, "close", None) or getattr(source, "close", None)
            if finish is not None:
                await asyncio.to_thread(finish)
    else:
        raise TypeError(
            f"An answer is made from an iterator of dicts, text or bytes, not {type(source).__name__}."
        )


async def _step(each: Any) -> Any:
    """Take the next item in a worker thread. A step that is cancelled is waited for: its iterator is closed next."""
    step = asyncio.ensure_future(asyncio.to_thread(next, each, _END))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait({step})
        if not step.cancelled():
            step.exception()  # it is nobody's any more
        raise
