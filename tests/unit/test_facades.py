"""The sync and the async API are one: same names, same parameters, same defaults, with the few exceptions listed."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import durable_streams
import durable_streams.testing
from durable_streams import (
    AsyncDurableStream,
    AsyncFollowing,
    AsyncStreamResponse,
    DurableStream,
    Following,
    IdempotentProducer,
    StreamResponse,
    SyncIdempotentProducer,
    afollow,
    alist_streams,
    astream,
    follow,
    list_streams,
    stream,
)
from durable_streams.firehose import (
    AsyncFirehoseStream,
    FirehoseStream,
    astream_with_retry,
    stream_with_retry,
)
from durable_streams.state import AsyncStreamDB, StreamDB, acompact, compact

PAIRS = [
    (DurableStream, AsyncDurableStream),
    (StreamResponse, AsyncStreamResponse),
    (SyncIdempotentProducer, IdempotentProducer),
    (Following, AsyncFollowing),
    (StreamDB, AsyncStreamDB),
]
# What Python names differently for async objects, and what only they have.
TWINS = {
    "close": "aclose",
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
    "__iter__": "__aiter__",
    "__next__": "__anext__",
}
KEPT_CLOSE = {SyncIdempotentProducer}  # the producer's close waits for data and may raise: close in both
ANNOTATIONS = [  # sync text, what stands in its place in the async API
    (r"\bDurableStream\b", "AsyncDurableStream"),
    (r"\bStreamResponse\b", "AsyncStreamResponse"),
    (r"\bFollowing\b", "AsyncFollowing"),
    (r"\bHeadersLike\b", "AsyncHeadersLike"),
    (r"\bParamsLike\b", "AsyncParamsLike"),
    (r"\bOnError\b", "AsyncOnError"),
    (r"\bIterator\b", "AsyncIterator"),
    (r"\bFuture\b", "asyncio.Future"),
]
RETURNS = {"stream": "Opening"}  # awaited, or entered with async with
FOREIGN = re.compile(
    r"\b(urllib3|aiohttp|httpx2?|requests|yarl|multidict|PoolManager|ClientSession|httpcore)\b"
)
PUBLIC_CLASSES = [
    value for name in durable_streams.__all__ if inspect.isclass(value := getattr(durable_streams, name))
]


def public_members(kind: type) -> set[str]:
    shown = {name for name in vars(kind) if not name.startswith("_")}
    for base in kind.__mro__[1:]:
        if base.__module__.startswith("durable_streams"):
            shown |= {name for name in vars(base) if not name.startswith("_")}
    return shown | ({*TWINS, *TWINS.values()} & set(vars(kind)))


def twin(kind: type, name: str) -> str:
    if name == "close" and kind in KEPT_CLOSE:
        return name
    return TWINS.get(name, name)


def shape(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


def pairs_of_functions() -> Iterator[tuple[str, Callable[..., Any], Callable[..., Any]]]:
    yield "stream", stream, astream
    yield "list_streams", list_streams, alist_streams
    yield "compact", compact, acompact
    yield "follow", follow, afollow
    for one, other in PAIRS:
        yield f"{one.__name__}()", one.__init__, other.__init__
        for name in sorted(public_members(one)):
            member = inspect.getattr_static(one, name)
            if isinstance(member, property):
                continue
            yield f"{one.__name__}.{name}", getattr(one, name), getattr(other, twin(one, name))


FUNCTIONS = [pytest.param(one, other, id=name) for name, one, other in pairs_of_functions()]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_both_have_the_same_members(one: type, other: type) -> None:
    assert {twin(one, name) for name in public_members(one)} == public_members(other)


@pytest.mark.parametrize(("one", "other"), FUNCTIONS)
def test_parameters_and_defaults_are_the_same(one: Callable[..., Any], other: Callable[..., Any]) -> None:
    assert shape(one) == shape(other)


@pytest.mark.parametrize(("one", "other"), FUNCTIONS)
def test_annotations_differ_only_where_async_is_another_type(
    one: Callable[..., Any], other: Callable[..., Any]
) -> None:
    ours, theirs = one.__annotations__, other.__annotations__
    assert ours.keys() == theirs.keys()
    for name, annotation in ours.items():
        expected = annotation
        for pattern, replacement in ANNOTATIONS:
            expected = re.sub(pattern, replacement, expected)
        if name == "return":
            expected = RETURNS.get(one.__name__, expected)
        assert theirs[name] == expected, name


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_what_needs_no_io_is_written_once(one: type, other: type) -> None:
    """Shared properties come from a shared base; the exceptions depend on how waiting is done."""
    own = {
        name
        for kind in (one, other)
        for name, member in vars(kind).items()
        if isinstance(member, property) and not name.startswith("_")
    }
    # A response's state lies in how it is woken; an async producer also counts what waits for the content type.
    assert own <= {"closed", "pending_count"}


def test_the_described_names_have_the_described_parameters() -> None:
    """What users were promised, by name and default."""
    promised: dict[Callable[..., Any], dict[str, Any]] = {
        stream: {
            "offset": "-1",
            "live": True,
            "headers": None,
            "params": None,
            "client": None,
            "on_error": None,
        },
        DurableStream.create: {
            "content_type": None,
            "ttl_seconds": None,
            "expires_at": None,
            "closed": False,
        },
        DurableStream.append: {"seq": None},
        DurableStream.close_stream: {"data": None},
        IdempotentProducer: {
            "client": None,
            "epoch": 0,
            "auto_claim": False,
            "max_batch_bytes": 1024 * 1024,
            "linger_ms": 5,
            "on_error": None,
        },
    }
    for function, defaults in promised.items():
        parameters = inspect.signature(function).parameters
        assert {name: parameters[name].default for name in defaults} == defaults
    assert [*inspect.signature(IdempotentProducer).parameters][:2] == ["url", "producer_id"]


@pytest.mark.parametrize("kind", PUBLIC_CLASSES)
def test_every_public_member_is_documented(kind: type) -> None:
    assert inspect.getdoc(kind)
    for name in public_members(kind) if kind.__module__.startswith("durable_streams") else ():
        member = inspect.getattr_static(kind, name)
        if name.startswith("__") and name not in {"__iter__", "__aiter__"}:
            continue
        if callable(member) or isinstance(member, (property, classmethod, staticmethod)):
            assert inspect.getdoc(member), f"{kind.__name__}.{name}"


def test_every_public_function_is_documented() -> None:
    for function in (stream, astream, list_streams, alist_streams, follow, afollow):
        assert inspect.getdoc(function)


def documented(function: Callable[..., Any], text: str | None) -> Iterator[tuple[str, bool]]:
    """Yield each parameter of a function, and whether the text has an entry for it under ``Args:``."""
    entries = re.findall(r"(?m)^    (\w+): ", (inspect.cleandoc(text or "") + "\n").partition("Args:\n")[2])
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in {"self", "cls"}:
            yield parameter.name, parameter.name in entries
            assert parameter.kind is not parameter.VAR_KEYWORD, "options are named"


@pytest.mark.parametrize(
    "kind", [kind for pair in PAIRS for kind in pair] + [FirehoseStream, AsyncFirehoseStream]
)
def test_every_parameter_is_documented(kind: type) -> None:
    if not issubclass(kind, (StreamResponse, AsyncStreamResponse)):  # made by stream and astream only
        assert {name for name, found in documented(kind, kind.__doc__) if not found} == set()
    for name in sorted(public_members(kind)):
        member = getattr(kind, name)
        if callable(member) and not inspect.isclass(member) and not name.startswith("__"):
            missing = {parameter for parameter, found in documented(member, member.__doc__) if not found}
            assert (name, missing) == (name, set())


@pytest.mark.parametrize(
    "function",
    [stream, astream, list_streams, alist_streams, follow, afollow, stream_with_retry, astream_with_retry],
)
def test_every_parameter_of_a_function_is_documented(function: Callable[..., Any]) -> None:
    assert {name for name, found in documented(function, function.__doc__) if not found} == set()


def annotations_of(value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        for base in value.__mro__:
            if base.__module__.startswith("durable_streams"):
                yield from map(str, inspect.get_annotations(base).values())
                for name, member in vars(base).items():
                    if name.startswith("_") and name not in {
                        "__init__",
                        "__iter__",
                        "__aiter__",
                        "__enter__",
                    }:
                        continue
                    for function in (
                        member,
                        getattr(member, "fget", None),
                        getattr(member, "__func__", None),
                    ):
                        yield from map(str, getattr(function, "__annotations__", {}).values())
    elif callable(value):
        yield from map(str, getattr(value, "__annotations__", {}).values())


@pytest.mark.parametrize("name", [*durable_streams.__all__])
def test_no_http_library_shows_in_the_annotations(name: str) -> None:
    value = getattr(durable_streams, name)
    public = [text for text in annotations_of(value) if not text.startswith("_")]
    assert not [text for text in public if FOREIGN.search(text)]


def test_annotations_can_be_resolved() -> None:
    """Tools that read annotations at run time find all their names."""
    for function in (
        stream,
        astream,
        DurableStream.append,
        AsyncDurableStream.append,
        StreamResponse.iter_text,
    ):
        assert typing.get_type_hints(function)
