"""Where a read stands after whole results: all of it was handed over, or nothing."""

from __future__ import annotations

import pytest
from facade import Facade
from scripted import ScriptedServer

from durable_streams import DurableStreamError, RetryPolicy

METHODS = ["read_json", "read_json_batches", "read_bytes", "read_text"]


class Store:
    def __init__(self) -> None:
        self.saved: list[str] = []

    def load(self) -> str | None:
        return self.saved[-1] if self.saved else None

    def save(self, offset: str) -> None:
        self.saved.append(offset)


def two_answers(scripted: ScriptedServer, second: bytes) -> None:
    first = scripted.response(200, b'["one"]', stream_next_offset="1", content_type="application/json")
    scripted.replies = [scripted.send(first), scripted.send(second)]


@pytest.mark.parametrize("method", METHODS)
def test_a_result_that_fails_halfway_moves_nothing(
    facade: Facade, scripted: ScriptedServer, method: str
) -> None:
    """Pitfall 4: what was read so far is lost to the caller, so that it must come again."""
    two_answers(scripted, scripted.response(403))
    store = Store()
    with (
        pytest.raises(DurableStreamError, match="403"),
        facade.stream(
            scripted.root + "/s", live=False, checkpoint=store, retry=RetryPolicy(max_retries=0)
        ) as reading,
    ):
        getattr(reading, method)()
    assert (reading.offset, reading.up_to_date, store.saved) == ("-1", False, [])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fails", [False, True])
def test_a_whole_result_is_saved_when_its_block_ends_well(
    facade: Facade, scripted: ScriptedServer, method: str, fails: bool
) -> None:
    last = {"stream_next_offset": "2", "stream_up_to_date": "true", "content_type": "application/json"}
    two_answers(scripted, scripted.response(200, b'["two"]', **last))
    store = Store()

    def use() -> None:
        with facade.stream(scripted.root + "/s", live=False, checkpoint=store) as reading:
            getattr(reading, method)()
            assert reading.offset == "2"
            assert not store.saved
            if fails:
                raise KeyError

    if fails:
        with pytest.raises(KeyError):
            use()
    else:
        use()
    assert store.saved == ([] if fails else ["2"])
