"""The X API SDK, PyPI's `xdk` 0.10.6, with our `xdk.streaming` in place of its own, against the imitation of X.

Run by `tests/interop/run` with our own Python and the SDK's folder, INTEROP_XDK. Every streaming endpoint of the SDK is
called, found by what it takes, and whatever it gives is the same with either module.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import logging
import os
import sys
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, os.environ["INTEROP_XDK"])  # a package, so that it hides the folder of ours
sys.path.append(str(ROOT / "xdk" / "src"))

from xdk_testing import XFilteredStream  # noqa: E402

OURS, THEIRS = "ours", "official"
POST = {"id": "1", "text": "a \u2028 b", "author_id": "7", "edit_history_tweet_ids": ["1"], "lang": "en"}
AT = "2026-01-01T00:00:00.000Z"
TWEET = {"id": "1", "author_id": "7"}
NOTICE = {"tweet": TWEET, "application": "a", "event_at": AT}
# Each of the SDK's models takes some of them, and those of compliance streams refuse the others.
RECORDS: list[dict[str, Any]] = [
    {"data": POST, "includes": {"users": [{"id": "7", "name": "n", "username": "u"}]}},
    {"data": {"delete": {"tweet": TWEET, "event_at": AT}}},
    {"data": {"delete": {"favorite": {"id": "1", "user_id": "7"}, "event_at": AT}}},
    {"data": {"user_delete": {"user": {"id": "7"}, "event_at": AT}}},
    {"data": {"public_tweet_notice": {**NOTICE, "event_type": "e"}}},
    {"data": {**POST, "id": "2"}, "matching_rules": [{"id": "9", "tag": "t"}], "unknown": {"deep": [1, 2.5]}},
]
WITHIN = 30.0  # seconds


@cache
def sdk(side: str) -> ModuleType:
    """Import the SDK afresh, with the streaming module of this side."""
    for name in [name for name in sys.modules if name == "xdk" or name.startswith("xdk.")]:
        del sys.modules[name]
    if side == OURS:
        path = ROOT / "xdk" / "src" / "xdk" / "streaming.py"
        spec = importlib.util.spec_from_file_location("xdk.streaming", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["xdk.streaming"] = module
        spec.loader.exec_module(module)
    return importlib.import_module("xdk")


def endpoints(client: Any) -> dict[str, Callable[..., Iterator[Any]]]:
    """Return the SDK's streaming calls, each with what it must be given."""
    found = {}
    for name, method in inspect.getmembers(client.stream, inspect.ismethod):
        parameters = inspect.signature(method).parameters
        if "stream_config" in parameters:
            needed = {
                parameter.name: 1
                for parameter in parameters.values()
                if parameter.default is inspect.Parameter.empty
            }
            found[name] = lambda method=method, needed=needed, **more: method(**needed, **more)
    return found


@contextmanager
def imitation() -> Iterator[XFilteredStream]:
    with XFilteredStream(rate_limit=10_000, connections=100, heartbeat=0.1) as x:
        yield x


def client_of(package: ModuleType, x: XFilteredStream) -> Any:
    return package.Client(base_url=x.base_url, bearer_token=x.bearer_token)


def quick(package: ModuleType, **settings: Any) -> Any:
    return package.StreamConfig(initial_backoff=0.01, max_backoff=0.02, jitter=False, **settings)


class Publishing:
    """Publishes the records, with a break in the middle; then the feed ends with a refusal that no attempt can fix."""

    def __init__(self, x: XFilteredStream) -> None:
        self._x, self._before = x, len(x.attempts)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(WITHIN)
        self._x.faults.clear()

    def _run(self) -> None:
        lines = [json.dumps(record).encode() for record in RECORDS]
        self._connected(1)
        self._x.publish(*lines[:3])
        self._x.end()
        self._connected(2)
        self._x.publish(*lines[3:])
        self._x.refuse(401, times=None)  # ours asks once more, in case that credentials have expired
        self._x.end()

    def _connected(self, number: int) -> None:
        """Wait for this connection: the one before it may be gone sooner than anybody can see."""
        deadline = time.monotonic() + WITHIN
        while len(self._x.attempts) < self._before + number:
            assert time.monotonic() < deadline
            time.sleep(0.002)


def taken(package: ModuleType, x: XFilteredStream, call: Callable[..., Any], **options: Any) -> list[Any]:
    """Return what a call gives until the refusal."""
    found: list[Any] = []
    with Publishing(x), closing(call(stream_config=quick(package), **options)) as items:
        with pytest.raises(package.StreamError) as caught:
            found.extend(items)
        assert caught.value.status_code == 401
    return found


class Sdk(unittest.TestCase):
    """What programs of the SDK see."""

    def given(self, side: str) -> dict[str, list[tuple[str, Any]]]:
        """Return for each endpoint the type and the content of what it gives, across a reconnect."""
        package, given = sdk(side), {}
        with imitation() as x:
            for name, call in endpoints(client_of(package, x)).items():
                items = taken(package, x, call)
                given[name] = [(type(item).__name__, item.model_dump(mode="json")) for item in items]
            paths = {attempt.path for attempt in x.attempts}
            assert len(paths) == len(given), "each endpoint has a path of its own"
            assert {attempt.headers["user-agent"] for attempt in x.attempts} == {"xdk-python/0.10.6"}
        return given

    def test_every_streaming_endpoint_gives_models(self) -> None:
        ours, theirs = self.given(OURS), self.given(THEIRS)
        assert len(ours) == 15
        assert ours == theirs
        assert [name for name, items in ours.items() if not items] == []
        assert {kind for kind, _ in ours["posts_sample"]} == {"StreamPostsSampleResponse"}
        assert ours["posts"][-1][1]["matching_rules"] == RECORDS[-1]["matching_rules"]

    def test_the_module_is_the_one_of_its_side(self) -> None:
        for side in (OURS, THEIRS):
            client = sdk(side).Client(bearer_token="none")
            streaming = client.stream.posts_sample.__func__.__globals__["stream_with_retry"]
            theirs = streaming.__code__.co_filename.startswith(os.environ["INTEROP_XDK"])
            assert theirs == (side == THEIRS)

    def test_parameters_arrive_as_the_sdk_writes_them(self) -> None:
        queries = {}
        for side in (OURS, THEIRS):
            with imitation() as x:
                call = client_of(sdk(side), x).stream.posts_sample
                taken(sdk(side), x, call, tweet_fields=["created_at", "lang"], backfill_minutes=2)
                queries[side] = x.attempts[0].query
        assert queries[OURS] == queries[THEIRS]
        assert queries[OURS] == {"backfill_minutes": "2", "tweet.fields": "created_at,lang"}

    def test_errors_are_of_the_class_that_the_sdk_exports(self) -> None:
        for side in (OURS, THEIRS):
            package = sdk(side)
            with imitation() as x:
                client = package.Client(base_url=x.base_url, bearer_token="another")
                with pytest.raises(package.StreamError) as caught:
                    next(client.stream.posts_sample(stream_config=quick(package)))
                assert caught.value.error_type == package.StreamErrorType.AUTHENTICATION_ERROR
                assert caught.value.status_code == 401
                assert not caught.value.is_retryable

    def test_closing_a_stream_releases_its_connection(self) -> None:
        for side in (OURS, THEIRS):
            with imitation() as x:
                items = client_of(sdk(side), x).stream.posts_sample(stream_config=quick(sdk(side)))
                publishing = threading.Thread(
                    target=lambda: (x.wait_for_connections(), x.publish(json.dumps(RECORDS[0]).encode()))
                )
                publishing.start()
                next(items)
                publishing.join(WITHIN)
                items.close()
                x.wait_for_no_connection()

    def test_a_rule_is_made_and_its_posts_come(self) -> None:
        with imitation() as x:
            client = client_of(sdk(OURS), x)
            request = client.stream.update_rules.__func__.__globals__["UpdateRulesRequest"]
            client.stream.update_rules(body=request(add=[{"value": "cats", "tag": "about"}]))
            items = client.stream.posts(stream_config=quick(sdk(OURS)))
            publishing = threading.Thread(
                target=lambda: (x.wait_for_connections(), x.publish({"data": {"id": "5", "text": "cats"}}))
            )
            publishing.start()
            with closing(items):
                item = next(items).model_dump()
            publishing.join(WITHIN)
        assert (item["data"]["id"], item["matching_rules"][-1]["tag"]) == ("5", "about")


def main() -> int:
    """Run the tests; write how many passed and how many failed into the file that is named."""
    logging.disable()  # both sides log what the tests bring about
    result = unittest.main(argv=sys.argv[:1], exit=False, verbosity=1).result
    failed = len(result.failures) + len(result.errors)
    Path(sys.argv[1]).write_text(f"{result.testsRun - failed} {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
