#!/usr/bin/env python3
# ruff: noqa: S603, T201 - a script, which starts ruff and reports on a terminal
"""Make the sync side of the client and the firehose from the async side.

    python tools/make_sync.py            write the files
    python tools/make_sync.py --check    fail where a file is not what would be written

What happens to a file, in this order: ``if ASYNC:`` blocks vanish, or leave the block behind their ``else:``; ``async``
and ``await`` go; calls through `asyncio.to_thread` become plain ones; names and phrases are replaced by the tables
below; docstrings are wrapped; ruff removes unused imports, and formats.

Why not unasyncd, the most capable tool on the package index (0.10): it cannot choose between two blocks inside a
function, and turns a pause into `time.sleep`, which no `close` can end.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / "src/durable_streams"

# From what, to what; one that imports another comes after it.
FILES = {
    "client/aio_performer.py": "client/sync_performer.py",
    "client/aio_response.py": "client/sync_response.py",
    "client/aio.py": "client/sync.py",
    "client/aio_worker.py": "client/sync_worker.py",
    "client/aio_listing.py": "client/sync_listing.py",
    "client/aio_follow.py": "client/sync_follow.py",
    "firehose/aio.py": "firehose/sync.py",
    "state/aio.py": "state/sync.py",
}

NAMES = {
    "AsyncAppendTurns": "AppendTurns",
    "AsyncDurableStream": "DurableStream",
    "AsyncExchange": "Exchange",
    "AsyncFirehoseStream": "FirehoseStream",
    "AsyncFollowing": "Following",
    "AsyncHandler": "Handler",
    "AsyncHeadersLike": "HeadersLike",
    "AsyncInterrupt": "Interrupt",
    "AsyncIterator": "Iterator",
    "AsyncNews": "News",
    "AsyncOnError": "OnError",
    "AsyncParamsLike": "ParamsLike",
    "AsyncPerformer": "Performer",
    "AsyncPieces": "Pieces",
    "AsyncRenewal": "Renewal",
    "AsyncStreamDB": "StreamDB",
    "AsyncStreamResponse": "StreamResponse",
    "AsyncTracedTransport": "TracedTransport",
    "AsyncTransport": "Transport",
    "AsyncValues": "Values",
    "StopAsyncIteration": "StopIteration",
    "Worker": "SyncWorker",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "aclose": "close",
    "acompact": "compact",
    "aclosing": "closing",
    "aio_append_turns": "append_turns",
    "aio_performer": "sync_performer",
    "aio_response": "sync_response",
    "afollow": "follow",
    "alist_streams": "list_streams",
    "anext": "next",
    "astream": "stream",
    "astream_with_retry": "stream_with_retry",
    "async_transport_for": "transport_for",
    "asynccontextmanager": "contextmanager",
}

PATTERNS = {
    r"durable_streams\.client\.aio import": "durable_streams.client.sync import",
    r"durable_streams\.client\.cancellable_wait import": "durable_streams.client.transports import",
    r"await asyncio\.to_thread\(([\w.]+), ": r"\1(",
    r"await asyncio\.to_thread\(([\w.]+)\)": r"\1()",
    r"AsyncGenerator\[(\w+), None\]": r"Generator[\1, None, None]",
    r"import AsyncGenerator\b": "import Generator",
    r"\basync (def|for|with)\b": r"\1",
    r"\bawait ": "",
}

# Where sync docstrings and signatures read otherwise; a space stands for any white space. Each one must occur.
PHRASES = {
    # The performer.
    "The async performer:": "The sync performer:",
    "over an async transport": "over a sync transport",
    "`_close`, from another task, ends the wait of the task that performs; a task that is cancelled from outside stays "
    "cancelled.": "`_close`, from another thread, ends whatever the thread that performs is blocked in.",
    "# A task that waits releases": "# A thread that is blocked releases",
    # Responses.
    "The async read:": "The sync read:",
    "`aclose` from another task ends the wait of a read; a task that is cancelled from outside stays cancelled.": (
        "`close` from another thread ends whatever a read is blocked in."
    ),
    "in an ``async with`` block": "in a ``with`` block",
    "From another task it ends the wait of the read, too.": (
        "From another thread it ends a read that is blocked, too."
    ),
    # Handles.
    "The async facade:": "The sync facade:",
    "-> Opening:": "-> StreamResponse:",
    "Use it as ``async with astream(url) as res``, or as ``res = await astream(url)``: the first request is made then, "
    "and the errors of that request are raised there.": (
        "The first request is made here, and its errors are raised here."
    ),
    "Use it as ``async with handle.stream() as res``, or as ``res = await handle.stream()``: the first request is made "
    "then, and its errors are raised there.": "The first request is made here, and its errors are raised here.",
    "What to await, or to enter with ``async with``, for the response to consume.": (
        "The response to consume; use it in a ``with`` block."
    ),
    "may be callables, async ones too, called": "may be callables, called",
    "A callable (it may be async) that": "A callable that",
    "so does a callable (it may be async), which": "so does a callable, which",
    "holds no connection and may be used by many tasks.": "holds no connection and is thread-safe.",
    "appends of several tasks": "appends of several threads",
    "A client of httpx, httpx2 or aiohttp; None for one that all calls of an event loop share.": (
        "A client of httpx, httpx2, requests or urllib3; None for one that the process shares."
    ),
    # Workers.
    "The async worker:": "The sync worker:",
    "A handler whose lease is lost is cancelled, and its batch is not acknowledged: it comes again.": (
        "The batch of a handler whose lease is lost is not acknowledged: it comes again. A handler that takes "
        "long asks ``batch.is_lost``, and returns."
    ),
    "Processes a batch; it may be async.": "Processes a batch.",
    # The list of streams.
    "The async list of streams:": "The sync list of streams:",
    # Several streams.
    "Many streams over one connection, async:": "Many streams over one connection, sync:",
    # Live state.
    "The async StreamDB: follows a stream in a task,": "The sync StreamDB: follows a stream in a thread,",
    "in a SQLite file. An async context manager.": "in a SQLite file. A context manager.",
    "is followed by a task of its own": "is followed by a thread of its own",
    # Feeds. The first parameter of `stream_with_retry` has the name that users of the X SDK know.
    "The async firehose:": "The sync firehose:",
    "`stop`, from any task or thread, ends the wait of the feed; a task that is cancelled from outside stays "
    "cancelled;": "`stop`, from any thread, ends whatever the feed is blocked in;",
    ": an async iterator and context manager.": ": an iterator and a context manager.",
    "ends it from any task or thread.": "ends it from any thread.",
    "From another task or thread it ends the wait for a record.": (
        "From another thread it ends a read that is blocked."
    ),
    "While another task iterates it": "While another thread iterates it",
    "may be callables (async ones too) that": "may be callables that",
    "Return an async generator over": "Return a generator over",
    "def astream_with_retry(  # noqa: PLR0917 - the signature that users know client:": (
        "def stream_with_retry(  # noqa: PLR0917 - the signature that users know\n    session:"
    ),
    "def astream_with_retry( client:": "def stream_with_retry(\n    session:",
    "client: A client, as for `AsyncFirehoseStream`.": "session: A client, as for `FirehoseStream`.",
    "request, client).records()": "request, session).records()",
    "client=client) feed = make_feed(": "client=session)\n    feed = make_feed(",
    "several tasks may iterate, and share the records.": "several threads may iterate, and share the records.",
}

WIDTH = 112
SECTIONS = {"Args:", "Returns:", "Raises:"}


def without_async_blocks(source: str) -> str:
    """Return the source with each ``if ASYNC:`` resolved as the sync side needs it."""
    while (mark := _last_mark(source)) is not None:
        lines = source.splitlines(keepends=True)
        first, end = mark.lineno - 1, mark.body[-1].end_lineno or 0
        left: list[str] = []
        if mark.orelse:
            begin, end = end + 1, mark.orelse[-1].end_lineno or 0  # the line between the two is ``else:``
            block = textwrap.dedent("".join(lines[begin:end]))
            left = textwrap.indent(block, " " * mark.col_offset).splitlines(keepends=True)
        source = "".join([*lines[:first], *left, *lines[end:]])
    return source


def _last_mark(source: str) -> ast.If | None:
    marks = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "ASYNC"
    ]
    return max(marks, key=lambda node: node.lineno, default=None)


def replaced(source: str, unused: set[str]) -> str:
    """Return the source with names, phrases and keywords of the sync side; take the phrases from ``unused``."""
    for before, after in PHRASES.items():
        pattern = r"\s+".join(map(re.escape, before.split()))
        source, count = re.subn(pattern, after.replace("\\", r"\\"), source)
        if count:
            unused.discard(before)
    for pattern, after in PATTERNS.items():
        source = re.sub(pattern, after, source)
    return re.sub(r"\b\w+\b", lambda word: NAMES.get(word[0], word[0]), source)


def refilled(source: str) -> str:
    """Return the source with the paragraphs of its docstrings wrapped: replacements have changed their lines."""
    return re.sub(r'(?s)^( *)(r?""".*?""")$', _refilled_docstring, source, flags=re.MULTILINE)


def _refilled_docstring(found: re.Match[str]) -> str:
    paragraphs = found[0].split("\n\n")
    return "\n\n".join(_refilled_paragraph(paragraph, len(found[1])) for paragraph in paragraphs)


def _refilled_paragraph(paragraph: str, indent: int) -> str:
    lines = paragraph.rstrip().split("\n")
    closing = "\n" + lines.pop() if lines[-1].strip() == '"""' else ""
    if lines and lines[0].strip() in SECTIONS:
        inner = "\n".join(lines[1:])
        items = re.split(rf"\n(?= {{{indent + 4}}}\S)", inner)
        filled = [_filled(item.split("\n"), indent + 4, indent + 8) for item in items]
        return "\n".join([lines[0], *filled]) + closing
    plain = all(len(line) - len(line.lstrip()) == indent for line in lines)
    listed = any(line.lstrip().startswith("* ") for line in lines)
    return (_filled(lines, indent, indent) if lines and plain and not listed else "\n".join(lines)) + closing


def _filled(lines: list[str], first: int, rest: int) -> str:
    text = " ".join(line.strip() for line in lines)
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def ruff(*arguments: str, path: Path, source: str) -> str:
    """Return the source as ruff leaves it."""
    command = [shutil.which("ruff", path=Path(sys.executable).parent) or "ruff", *arguments]
    done = subprocess.run(
        [*command, "--quiet", "--stdin-filename", str(path), "-"],
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{path}: {done.stdout}{done.stderr}")
    return done.stdout


def made_from(origin: str, target: Path, unused: set[str]) -> str:
    """Return the text of a sync file."""
    source = refilled(replaced(without_async_blocks((HOME / origin).read_text()), unused))
    source = ruff(
        "check",
        "--fix-only",
        "--unsafe-fixes",
        "--select=C416,F401,I001,UP028,UP034",
        path=target,
        source=source,
    )
    header = f"# Made from {origin} by tools/make_sync.py: change that file, then run `make generate`.\n\n"
    return header + ruff("format", path=target, source=source)


def main() -> int:
    """Write or check all files."""
    unused, stale = set(PHRASES), []
    for origin, name in FILES.items():
        target = HOME / name
        text = made_from(origin, target, unused)
        if target.exists() and target.read_text() == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            target.write_text(text)
    for phrase in unused:
        print(f"no file has this phrase any more: {phrase!r}", file=sys.stderr)
    if "--check" in sys.argv and stale:
        print(f"out of date: {', '.join(stale)}; run `make generate`", file=sys.stderr)
    return 1 if unused or ("--check" in sys.argv and stale) else 0


if __name__ == "__main__":
    sys.exit(main())
