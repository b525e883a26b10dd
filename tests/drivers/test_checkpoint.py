"""A read that keeps its place between runs: at least once, never a message less. Pitfall 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from facade import Facade

from durable_streams import DurableStreamError, FileCheckpoint

MODES = [False, True, "long-poll", "sse"]


class Memory:
    """A store of the user's own."""

    def __init__(self, offset: str | None = None) -> None:
        self.offset = offset
        self.saved: list[str] = []

    def load(self) -> str | None:
        return self.offset

    def save(self, offset: str) -> None:
        self.offset = offset
        self.saved.append(offset)


@pytest.mark.parametrize("live", MODES)
@pytest.mark.every_store
def test_the_next_run_goes_on_where_the_last_one_ended(
    facade: Facade, url: str, tmp_path: Path, live: Any
) -> None:
    path = tmp_path / "place"
    handle = facade.DurableStream.create(url, content_type="application/json")
    for number in range(3):
        handle.append(number)
    if live is False:
        assert facade.stream(url, live=live, checkpoint=path).read_json() == [0, 1, 2]
    else:
        with facade.stream(url, live=live, checkpoint=path) as response:
            items = response.iter_json()
            assert [next(items) for _ in range(3)] == [0, 1, 2]
            handle.append(3)
            assert next(items) == 3
    saved = FileCheckpoint(path).load()
    if live is False:
        assert saved == handle.head().offset
        handle.append(3)
    handle.append(4)
    handle.close_stream()
    rest = list(facade.stream(url, live=live, checkpoint=str(path)).iter_json())
    # What was handed over last may come again; nothing is left out.
    assert rest in ([3, 4], [4])
    assert list(facade.stream(url, live=live, checkpoint=path).iter_json()) == []


def test_what_the_consumer_was_busy_with_comes_again(facade: Facade, url: str) -> None:
    """A position is saved once the consumer has come back for what follows."""
    handle = facade.DurableStream.create(url, content_type="application/json", body="1")
    store = Memory()

    def consume() -> None:
        with facade.stream(url, live=False, checkpoint=store) as response:
            for _ in response.iter_json():
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    assert store.load() is None
    assert handle.stream(live=False, checkpoint=store).read_json() == [1]
    assert store.load() == handle.head().offset


def test_a_position_saved_by_hand(facade: Facade, url: str, tmp_path: Path) -> None:
    handle = facade.DurableStream.create(url, content_type="application/json", body="1")
    end = handle.head().offset
    store = FileCheckpoint(tmp_path / "place")
    handle.append(2)
    with facade.stream(url, live=False, offset=end) as response:
        items = response.iter_json()
        assert next(items) == 2
        response.checkpoint(store)
    assert store.load() == handle.head().offset
    assert facade.stream(url, live=False, checkpoint=store).read_json() == []


def test_a_checkpoint_goes_before_the_offset(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="application/json", body="1")
    middle = handle.head().offset
    handle.append(2)
    assert facade.stream(url, live=False, offset="-1", checkpoint=Memory(middle)).read_json() == [2]
    assert facade.stream(url, live=False, offset=middle, checkpoint=Memory()).read_json() == [2]


def test_a_file_that_is_no_checkpoint(facade: Facade, url: str, tmp_path: Path) -> None:
    path = tmp_path / "place"
    path.write_bytes(b"{")
    facade.DurableStream.create(url, content_type="application/json", body="1")
    with pytest.raises(DurableStreamError, match="not a checkpoint") as caught:
        facade.stream(url, live=False, checkpoint=path)
    assert caught.value.code == "CHECKPOINT"


def test_a_conditional_read(facade: Facade, url: str) -> None:
    """With the tag of an earlier read, what has not changed is not sent again."""
    handle = facade.DurableStream.create(url, content_type="application/json", body="1")
    first = handle.stream(live=False)
    assert first.read_json() == [1]
    assert first.etag
    again = handle.stream(live=False, etag=first.etag)
    assert again.status == 304
    assert again.ok
    assert again.read_bytes() in (b"", b"[]")
    assert again.offset in {first.offset, "-1"}
    handle.append(2)
    assert handle.stream(live=False, etag=first.etag).read_json() == [1, 2]
