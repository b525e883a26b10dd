"""The iterators that reads hand out. They outlive what interrupts them; a generator would end in silence.

Invariants: an exception that comes from outside, a cancellation or that of a signal handler, passes through `next`
or ``anext`` and changes nothing: the next call goes on behind the last piece, or raises what it was that ended the
read. An iterator ends without an error only where the read did.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from weakref import ref

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncPieces", "Pieces"]

T = TypeVar("T")


class _Read(Protocol):
    """A read, as its iterator sees it."""

    @property
    def interrupted(self) -> bool:
        """Whether something from outside ended the generator of its pieces; raises where it cannot go on."""


class _SyncRead(_Read, Protocol):
    def close(self) -> None: ...


class _AsyncRead(_Read, Protocol):
    when_broken: Callable[[], None]
    """Called when something from outside has ended the generator of its pieces."""

    async def aclose(self) -> None: ...


class AsyncPieces(Generic[T]):
    """The pieces of an async read, across the generators that give them.

    Args:
        read: The read.
        make: Begins a generator of the pieces that were not handed over yet.
    """

    # A slot of this name makes a piece cost no call of a function: the interpreter finds the generator's own method.
    __slots__ = ("__anext__", "__weakref__", "_generator", "_make", "_read")

    __anext__: Callable[[], Awaitable[T]]

    def __init__(self, read: _AsyncRead, make: Callable[[], AsyncGenerator[T, None]]) -> None:
        self._read, self._make = read, make
        read.when_broken = partial(_renew, ref(self))
        self._begin()

    def __aiter__(self) -> Self:
        return self

    def _begin(self) -> None:
        self._generator = self._make()
        self.__anext__ = self._generator.__anext__

    def begin_again(self) -> Awaitable[T]:
        """Return the next piece, of another generator if the read can go on."""
        if self._read.interrupted:
            self._begin()
        return self._generator.__anext__()

    async def aclose(self) -> None:
        """End the read."""
        await self._generator.aclose()
        await self._read.aclose()


def _renew(found: ref[AsyncPieces[Any]]) -> None:
    """Have the next call begin another generator, or say why there is none."""
    if (pieces := found()) is not None:
        pieces.__anext__ = partial(_again, found)


def _again(found: ref[AsyncPieces[T]]) -> Awaitable[T]:
    pieces: Any = found()  # its method is called: it is there
    again: Awaitable[T] = pieces.begin_again()
    return again


class Pieces(chain[T]):
    """The pieces of a sync read, across the generators that give them. A piece costs no call of a function.

    Args:
        read: The read.
        make: Begins a generator of the pieces that were not handed over yet.
    """

    _generators: _Generators[T]

    def __new__(cls, read: _SyncRead, make: Callable[[], Generator[T, None, None]]) -> Self:
        """Return the iterator."""
        generators = _Generators(read, make)
        pieces: Self = cls.from_iterable(generators)  # type: ignore[assignment]
        pieces._generators = generators
        return pieces

    def close(self) -> None:
        """End the read."""
        self._generators.close()


class _Generators(Iterator[Generator[T, None, None]]):
    """The generators of a read, one after the other: the first one, and one after each interruption."""

    def __init__(self, read: _SyncRead, make: Callable[[], Generator[T, None, None]]) -> None:
        self._read, self._make = read, make
        self._present = make()
        self._begun = False

    def __next__(self) -> Generator[T, None, None]:
        if not self._begun:
            self._begun = True
        elif self._read.interrupted:
            self._present = self._make()
        else:
            raise StopIteration
        return self._present

    def close(self) -> None:
        self._present.close()
        self._read.close()
