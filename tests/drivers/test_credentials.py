"""Credentials in URLs: sent as HTTP sends them, over every transport, and shown nowhere (B6)."""

from __future__ import annotations

import copy
import json
import pickle
from base64 import b64encode
from typing import Any

import pytest
from facade import Facade, Loop
from scripted import Received, ScriptedServer
from wires import EVERY, wire_over

from durable_streams import (
    AsyncDurableStream,
    DurableStream,
    DurableStreamError,
    FetchError,
    RetryPolicy,
    StreamNotFoundError,
    astream,
    stream,
)
from durable_streams.errors import redacted
from durable_streams.firehose import AsyncFirehoseStream, FirehoseStream
from durable_streams.protocol.request import check_url

NONE = RetryPolicy(max_retries=0)
BASIC = "Basic " + b64encode("us er:p@ss:wörd".encode()).decode()
USER = "us%20er:p%40ss:w%C3%B6rd@"


def _with_user(root: str, path: str) -> str:
    return root.replace("://", f"://{USER}") + path


def _answer(scripted: ScriptedServer) -> Any:
    def answer(request: Received) -> bytes:
        if request.headers.get("authorization") != BASIC:
            return scripted.response(401)
        if request.method != "GET":
            return scripted.response(200, content_type="text/plain", stream_next_offset="1")
        return scripted.response(
            200, b"data", content_type="text/plain", stream_next_offset="1", stream_up_to_date="true"
        )

    return answer


@pytest.mark.parametrize("name", EVERY)
def test_b6_the_user_of_a_url_is_sent(name: str, loop: Loop, scripted: ScriptedServer) -> None:
    scripted.answer = _answer(scripted)
    url = _with_user(scripted.root, "/s")
    with wire_over(name, loop) as wire:
        options: dict[str, Any] = {"client": wire.client, "retry": NONE}

        async def uses() -> bytes:
            await AsyncDurableStream(url, content_type="text/plain", **options).append("x")
            async with astream(url, live=False, **options) as response:
                return await response.read_bytes()

        if wire.is_async:
            assert wire.wait(uses()) == b"data"
        else:
            DurableStream(url, content_type="text/plain", **options).append("x")
            assert stream(url, live=False, **options).read_bytes() == b"data"
    assert [request.method for request in scripted.requests] == ["POST", "GET"]


@pytest.mark.parametrize("name", EVERY)
def test_b6_the_callers_header_wins_over_the_user_of_a_url(
    name: str, loop: Loop, scripted: ScriptedServer
) -> None:
    scripted.replies = [scripted.send(scripted.response(404))]
    url = _with_user(scripted.root, "/s")
    with wire_over(name, loop) as wire:
        options: dict[str, Any] = {"client": wire.client, "retry": NONE, "live": False}

        async def reads() -> None:
            await astream(url, headers={"Authorization": "Bearer own"}, **options)

        with pytest.raises(StreamNotFoundError):
            wire.wait(
                reads() if wire.is_async else stream(url, headers={"Authorization": "Bearer own"}, **options)
            )
    assert [request.headers["authorization"] for request in scripted.requests] == ["Bearer own"]


def test_b6_feeds_send_the_user_of_a_url(loop: Loop, scripted: ScriptedServer) -> None:
    scripted.answer = lambda request: scripted.response(
        200 if request.headers.get("authorization") == BASIC else 401, b'{"n": 1}\n'
    )
    url = _with_user(scripted.root, "/feed?api_key=hidden")
    with FirehoseStream(url) as feed:
        assert next(iter(feed)) == {"n": 1}
        assert "hidden" not in feed.url + repr(feed)
        assert "w%C3" not in feed.url + repr(feed)

    async def first() -> Any:
        async with AsyncFirehoseStream(url) as feed:
            return await anext(aiter(feed))

    assert loop.run(first()) == {"n": 1}
    assert all("api_key=hidden" in request.target for request in scripted.requests)


def test_b6_producers_send_the_user_of_a_url(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.answer = _answer(scripted)
    with facade.Producer(_with_user(scripted.root, "/s"), "p") as producer:
        producer.append("x")
        assert "w%C3" not in producer.url
    assert {request.headers["authorization"] for request in scripted.requests} == {BASIC}


@pytest.mark.parametrize("name", EVERY)
def test_b6_no_secret_is_in_an_error(name: str, loop: Loop, scripted: ScriptedServer) -> None:
    secrets = ("w%C3%B6rd", "wörd", "hidden", BASIC.split()[1])
    scripted.replies = [
        scripted.send(scripted.response(404)),
        scripted.send(scripted.response(200, b"no stream at all")),
        scripted.reset,
    ]
    url = _with_user(scripted.root, "/s?token=hidden&mail=a@b.example")
    with wire_over(name, loop) as wire:
        options: dict[str, Any] = {"client": wire.client, "retry": NONE, "params": {"api-key": "hidden"}}

        async def reads() -> None:
            await astream(url, live=False, **options)

        for _ in range(4):
            with pytest.raises(DurableStreamError) as caught:
                wire.wait(reads() if wire.is_async else stream(url, live=False, **options))
            error = caught.value
            for shown in (error, pickle.loads(pickle.dumps(_without_original(error)))):
                text = f"{shown!r} {shown} {shown.message} {shown.url}"
                assert not [secret for secret in secrets if secret in text], text
            if not scripted.ended.is_set() and len(scripted.requests) >= 3:
                scripted.stop()  # the last one finds nobody
    assert all("token=hidden" in request.target for request in scripted.requests)


def _without_original(error: DurableStreamError) -> DurableStreamError:
    if isinstance(error, FetchError):
        error.original = None
    return error


def test_b6_urls_and_reprs_of_handles_hide_secrets(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.answer = _answer(scripted)
    url = _with_user(scripted.root, "/s?X-Amz-Signature=hidden&limit=5")
    handle = facade.DurableStream(url, content_type="text/plain")
    assert handle.url == scripted.root + "/s?X-Amz-Signature=***&limit=5"
    assert not facade.is_async or "hidden" not in str(handle.__repr__())
    with handle.stream(live=False) as response:
        assert response.url == handle.url
        assert response.read_bytes() == b"data"
    assert "X-Amz-Signature=hidden" in scripted.requests[0].target
    assert "hidden" not in repr(DurableStream(url)) + repr(AsyncDurableStream(url))


def test_b6_the_url_of_a_handle_opens_the_stream_again(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.answer = _answer(scripted)
    url = _with_user(scripted.root, "/s?token=hidden&limit=5")
    handle = facade.DurableStream(url, content_type="text/plain")
    shown = handle.url
    assert facade.stream(shown, live=False).read_bytes() == b"data"
    with facade.DurableStream(shown, content_type="text/plain").stream(live=False) as response:
        assert facade.stream(response.url, live=False).read_bytes() == b"data"
    with facade.Producer(shown, "p", content_type="text/plain") as producer:
        assert producer.url == shown
    assert all("token=hidden" in request.target for request in scripted.requests)
    feed = FirehoseStream(shown)
    assert FirehoseStream(feed.url).url == shown
    copies = (str(shown), f"{shown}", shown + "", pickle.loads(pickle.dumps(shown)), copy.copy(shown))
    for copied in (*copies, *map(repr, copies), json.dumps(shown)):
        assert "hidden" not in copied
        assert "p@ss" not in copied
    # A copy is no longer the URL: that is said before anything is sent.
    with pytest.raises(ValueError, match="Open the stream with the whole URL"):
        stream(str(shown))
    assert check_url("http://host/s?sort=***&x=1") == "http://host/s?sort=***&x=1"
    assert type(redacted(shown)) is str
    plain = scripted.root + "/s"
    assert type(DurableStream(plain).url) is str


@pytest.mark.parametrize(
    "url",
    [
        "http://u:hidden@host:port/s",
        "http://u:hid den@host/s?token=hidden",
        "http://u:hidden#@host/s",
        "ftp://u:hidden@host/s",
        "http://u:hidden@a..example/s?access_token=hidden",
        "http://u:hidden@host/../s",
        "http://u:hidden@[host/s",
    ],
)
def test_b6_a_bad_url_is_named_without_its_secrets(url: str) -> None:
    with pytest.raises(ValueError, match="host") as caught:
        check_url(url)
    assert "hid" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://host/s?mail=a@b&sort=key", "http://host/s?mail=a@b&sort=key"),
        ("https://u@host/s", "https://host/s"),
        ("http://u:p@w@host/s", "http://host/s"),
        ("see http://u:p@host/s?key=1 or https://v:q@other/", "see http://host/s?key=*** or https://other/"),
        ("http://h/s?refreshToken=1&sig=2;pw=3#x", "http://h/s?refreshToken=***&sig=***;pw=***#x"),
        ("mail to a@b about x=y", "mail to a@b about x=y"),
    ],
)
def test_b6_what_is_a_secret(given: str, shown: str) -> None:
    assert redacted(given) == shown
