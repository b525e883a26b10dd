"""Seeded damages of a folder with 300 streams: no wrong bytes, no vanished stream, and a sentence for each."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
from pathlib import Path

import pytest
from damage import BYTES, copied, damage, fill

from durable_streams.protocol.commands import Append, Create, Rejection
from durable_streams.protocol.state import ProducerStamp
from durable_streams.stores.base import StoreDamagedError, StoreError
from durable_streams.stores.commit_log import LogLimits
from durable_streams.stores.sqlite import SqliteStore
from durable_streams.stores.verify import repair, verify

STREAMS = 300
DEFAULT = 50  # damages; of more, each is repaired, of these every third
B = "stream = (SELECT id FROM stream WHERE path = 'b')"


class Damaged:
    """What became of a damaged folder: the streams that were whole, and what was said of the others."""

    def __init__(self) -> None:
        self.whole = 0
        self.said: list[str] = []

    def note(self, error: StoreError) -> None:
        said = str(error)
        assert len(said.splitlines()) == 1
        assert len(said) < 600
        self.said.append(said)


async def content_of(store: SqliteStore, path: str, begin: int) -> bytes:
    state = await store.get(path)
    assert state is not None, f"{path} has vanished"
    assert state.earliest == begin
    parts, position = [], begin
    while position < state.tail:
        chunk = await store.read(state, position, 100_000)
        assert chunk.start == position
        parts.append(chunk.payload)
        position = chunk.end
    return b"".join(parts)


async def look_at(folder: Path, expected: dict[str, tuple[int, bytes]]) -> Damaged:
    found = Damaged()
    store = SqliteStore(folder)
    try:
        await store.open()
    except StoreError as error:
        found.note(error)
        return found

    async def look(path: str, begin: int, content: bytes) -> None:
        try:
            assert await content_of(store, path, begin) == content, f"{path} has other bytes"
            found.whole += 1
        except StoreError as error:
            found.note(error)
            if isinstance(error, StoreDamagedError) and error.stream is not None:
                await refuses(store, path, error.stream)
            return
        await goes_on(store, path, begin, content, found)

    try:
        for path, (begin, content) in expected.items():
            await look(path, begin, content)
        if any("is damaged" in said for said in found.said):
            with pytest.raises(StoreError):
                await store.check()
    finally:
        await store.close()
    return found


async def refuses(store: SqliteStore, path: str, stream: int) -> None:
    """A damaged stream takes no append; a fork of it, whose own bytes are whole, does."""
    try:
        if (await store.get(path)).id != stream:
            return
    except StoreError:
        return
    with pytest.raises(StoreError):
        await store.append(path, Append(BYTES, b"more"))


async def goes_on(store: SqliteStore, path: str, begin: int, content: bytes, found: Damaged) -> None:
    """What is whole takes appends, or says that it cannot; what it took is there."""
    if path.endswith("7"):
        try:
            await store.append(path, Append(BYTES, b"more"))
        except StoreError as error:
            found.note(error)
            return
        content += b"more"
    elif path.endswith("3") and content:
        try:
            appended = await store.append(path, Append(BYTES, b"x", producer=ProducerStamp("q", 0, 0)))
        except StoreError as error:
            found.note(error)
            return
        assert not appended.duplicate
        content += b"x"
    else:
        return
    try:
        assert await content_of(store, path, begin) == content, f"{path} has other bytes"
    except StoreError as error:
        found.note(error)


async def look_at_repaired(folder: Path, expected: dict[str, tuple[int, bytes]]) -> None:
    """Every stream is there, with its end; what it has is right, and what it lost was said."""
    try:
        said = repair(folder, lambda *_: None)
    except StoreError as error:
        failure = str(error)
    else:
        failure = ""
    if failure:
        assert re.fullmatch("cannot open the streams in .*", failure)
        return
    assert verify(folder, lambda *_: None).damages == []
    store = SqliteStore(folder)
    await store.open()
    names = {damage.name for damage in said.damages}
    lost = sum(damage.end - damage.begin for damage in said.damages)
    rest = 0
    for path, (begin, content) in expected.items():
        state = await store.get(path)
        if state is None:
            assert any(name.startswith("lost/") for name in names), f"{path} has vanished"
            continue
        whole = await content_of(store, path, state.earliest)
        if state.earliest < begin:  # its state was lost, and what it had given up was not purged yet
            assert path in names, f"{path} has given-up bytes again without a word"
            whole = whole[begin - state.earliest :]
        kept_from = max(state.earliest - begin, 0)
        assert whole == content[kept_from:][: len(whole)], f"{path} has other bytes"
        if len(whole) < len(content):
            source = path.removesuffix("/fork")
            assert path in names or source in names, f"{path} lost bytes without a word"
        rest += len(content) - len(whole)
    for path in said.kept:
        state = await store.get(path)
        content = expected[path.rpartition("~")[0]][1]
        whole = await content_of(store, path, state.earliest)
        assert whole == content[state.earliest : state.tail]
        assert state.closed
        rest -= len(whole)
    await store.check()
    await store.close()
    assert lost or rest <= 0 or any(damage.begin == damage.end for damage in said.damages)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, bytes]]]:
    folder = tmp_path_factory.mktemp("many")
    return folder, asyncio.run(fill(folder, STREAMS))


def test_the_folder_is_whole(many: tuple[Path, dict[str, tuple[int, bytes]]], tmp_path: Path) -> None:
    whole = verify(copied(many[0], tmp_path / "verified"), lambda *_: None)
    assert whole.damages == []
    assert whole.streams == len(many[1])
    found = asyncio.run(look_at(copied(many[0], tmp_path / "copy"), many[1]))
    assert found.said == []
    assert found.whole == len(many[1]) > STREAMS


@pytest.mark.timeout(3600)
def test_damages(
    many: tuple[Path, dict[str, tuple[int, bytes]]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder, expected = many
    noticed, count = 0, request.config.getoption("--damages")
    for seed in range(count):
        copy = copied(folder, tmp_path / str(seed))
        done = damage(copy, seed)
        try:
            found = asyncio.run(look_at(copy, expected))
            if count > DEFAULT or seed % 3 == 0:
                shutil.rmtree(copy)
                damage(copied(folder, copy), seed)
                asyncio.run(look_at_repaired(copy, expected))
        except (AssertionError, Rejection) as failure:
            failure.add_note(f"damage {seed}: {done}")
            raise
        noticed += bool(found.said)
        named = [said for said in found.said if re.search(r"stream \S+ is damaged at position \d+", said)]
        assert found.whole or len(found.said) == 1 or named, (seed, done)
        shutil.rmtree(copy)
    print(f"\n{count} damages, {noticed} noticed")  # noqa: T201
    assert noticed > count // 3


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("DELETE FROM stream WHERE path = 'b'", "stream b is damaged at position 0: its row is lost"),
        (
            "UPDATE stream SET path = 'x' WHERE path = 'b'",
            "stream b is damaged at position 0: its row is lost",
        ),
        (
            "UPDATE stream SET state = replace(state, 'b', 'c') WHERE path = 'b'",
            "position 0: its state is not",
        ),
        ("UPDATE stream SET state = '{' WHERE path = 'b'", "position 0: its state is not"),
        (
            "DELETE FROM record WHERE start = 8 AND " + B,
            "stream b is damaged at position 8: its end is missing",
        ),
    ],
)
def test_a_damaged_stream_cannot_be_taken_for_a_free_name(tmp_path: Path, sql: str, said: str) -> None:
    async def main() -> None:
        store = await with_three(tmp_path, sql)
        for request in (
            store.get("b"),
            store.create(Create("b", BYTES)),
            store.append("b", Append(BYTES, b"x")),
            store.check(),
        ):
            with pytest.raises(StoreDamagedError, match=said):
                await request
        assert (await store.append("a", Append(BYTES, b"x"))).state.tail == 13
        await store.close()

    asyncio.run(main())


async def with_three(folder: Path, sql: str) -> SqliteStore:
    """Return an open store with the streams a, b and c of three appends, damaged by a statement while it was closed."""
    store = SqliteStore(folder)
    await store.open()
    for path in "abc":
        await store.create(Create(path, BYTES))
        for number in range(3):
            await store.append(path, Append(BYTES, b"%s%03d" % (path.encode(), number)))
    await store.close()
    with sqlite3.connect(folder / "streams.db") as connection:
        assert connection.execute(sql).rowcount == 1
    connection.close()
    await store.open()
    return store


def test_appends_to_a_stream_whose_last_append_is_damaged(tmp_path: Path) -> None:
    """It is noticed before the first one; streams in the same commit are not concerned."""

    async def main() -> None:
        store = await with_three(tmp_path, "UPDATE record SET data = X'62303038' WHERE start = 8 AND " + B)
        await asyncio.gather(*map(store.get, "abc"))
        outcomes = await asyncio.gather(
            *[store.append(path, Append(BYTES, b"x")) for path in "abcabc"], return_exceptions=True
        )
        for path, outcome in zip("abcabc", outcomes, strict=True):
            if path == "b":
                assert isinstance(outcome, StoreDamagedError)
                assert "stream b is damaged at position 8: its last append is not" in str(outcome)
            else:
                assert outcome.state.tail in {13, 14}
        await store.delete("b")
        await store.check()
        assert (await store.create(Create("b", BYTES))).new
        await store.close()

    asyncio.run(main())


def test_damage_of_an_append_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    async def main() -> None:
        store = await with_three(tmp_path, "UPDATE record SET data = X'62303038' WHERE start = 4 AND " + B)
        state = await store.get("b")
        assert (await store.read(state, 0, 4)).payload == b"b000"
        assert (await store.read(state, 8, 100)).payload == b"b002"
        await store.check()
        with pytest.raises(StoreDamagedError, match="stream b is damaged at position 4: its bytes are not"):
            await store.read(state, 0, 100)
        with pytest.raises(StoreDamagedError, match="position 4"):
            await store.read_piece(state, 6, 3)
        with pytest.raises(StoreDamagedError, match="position 4"):
            await store.append("b", Append(BYTES, b"x"))
        with pytest.raises(StoreDamagedError, match="position 4"):
            await store.check()
        assert (await store.append("a", Append(BYTES, b"x"))).state.tail == 13
        await store.close()

    asyncio.run(main())


def test_a_damaged_producer_is_not_asked_for_its_number(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteStore(tmp_path)
        await store.open()
        await store.create(Create("a", BYTES))
        await store.append("a", Append(BYTES, b"x", producer=ProducerStamp("p", 0, 0)))
        await store.close()
        with sqlite3.connect(tmp_path / "streams.db") as connection:
            connection.execute("UPDATE producer SET seq = 4")
        connection.close()
        await store.open()
        with pytest.raises(
            StoreDamagedError, match="stream a is damaged at position 0: the producer p is not"
        ):
            await store.append("a", Append(BYTES, b"x", producer=ProducerStamp("p", 0, 5)))
        await store.close()

    asyncio.run(main())


def test_a_damaged_row_of_the_log_is_cut_off_by_a_repair(tmp_path: Path) -> None:
    """The commits before it are kept."""
    folder, copy = tmp_path / "one", tmp_path / "copy"

    async def main() -> None:
        store = SqliteStore(folder, log=LogLimits(streams=1, quiet=600.0))
        await store.open()
        for path in "ab":
            await store.create(Create(path, BYTES))
        for number in range(4):
            payload = b"%04d" % number
            await asyncio.gather(*[store.append(path, Append(BYTES, payload)) for path in "ab"])
        shutil.copytree(folder, copy)
        await store.close()

    asyncio.run(main())
    with sqlite3.connect(copy / "streams.db") as connection:
        (rows,) = connection.execute("SELECT count(*) FROM log").fetchone()
        assert rows == 4
        connection.execute("UPDATE log SET data = zeroblob(length(data)) WHERE id = 3")
    connection.close()
    with pytest.raises(StoreError, match="row 3 of the table log is missing or not what was stored"):
        verify(copy, lambda *_: None)
    said = repair(copy, lambda *_: None)
    assert [damage.name for damage in said.damages] == ["the log of commits"]
    assert "2 commits are lost" in said.damages[0].what
    assert verify(copy, lambda *_: None).damages == []

    async def check() -> None:
        store = SqliteStore(copy)
        await store.open()
        for path in "ab":
            assert await content_of(store, path, 0) == b"00000001"
            await store.append(path, Append(BYTES, b"more"))
        await store.close()

    asyncio.run(check())
