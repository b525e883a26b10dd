from __future__ import annotations

import copy
import pickle
import re

import pytest

from durable_streams import errors
from durable_streams.protocol.request import (
    Request,
    Response,
    ShownURL,
    check_callers_headers,
    check_header,
    check_url,
    content_length,
    error_from,
    parse_retry_after,
    path_of,
    shown_url,
    text_of,
    with_caller,
    with_credentials,
    with_query,
)

URL = "http://host/v1/stream/x"


def answer(
    status: int, body: bytes = b"", *, method: str = "GET", sent: dict[str, str] | None = None, **headers: str
) -> errors.DurableStreamError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return error_from(Response(status, named, body), Request(method, URL + "?token=secret", sent or {}))


def test_query_is_sorted_and_keeps_the_urls_own_repeated_keys() -> None:
    url = with_query("http://host/s?tag=b&tag=a&zone=1&live=old&empty=", {"offset": "a/b c", "live": "sse"})
    assert url == "http://host/s?empty=&live=sse&offset=a%2Fb%20c&tag=b&tag=a&zone=1"


def test_caller_parameters_join_but_do_not_replace_the_protocols() -> None:
    request = Request("GET", with_query(URL, {"offset": "5"}), {"accept": "text/event-stream"})
    sent = with_caller(request, {"Accept": "*/*", "Authorization": "Bearer x"}, {"offset": "9", "key": "a&b"})
    assert sent.url == URL + "?key=a%26b&offset=5"
    assert sent.headers == {"accept": "text/event-stream", "authorization": "Bearer x"}


@pytest.mark.parametrize(
    "url", ["host/s", "ftp://host/s", "http://", "http://host/a b", "http://host:port/", "http://h/\r\n"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        check_url(url)


def test_a_fragment_is_dropped_and_other_letters_are_encoded() -> None:
    assert check_url("http://host/é%20/ü?q=é#top") == "http://host/%C3%A9%20/%C3%BC?q=%C3%A9"


@pytest.mark.parametrize(
    ("name", "value"), [("X", "a\r\nb: c"), ("X Y", "a"), ("", "a"), ("X", "☃"), ("X", "\x00")]
)
def test_a_header_that_could_inject_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="header"):
        check_header(name, value)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "Wed, 21 Oct 2015 07:28:30 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert parse_retry_after(headers) == seconds


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, errors.DurableStreamError, "BAD_REQUEST"),
        (401, errors.DurableStreamError, "UNAUTHORIZED"),
        (403, errors.DurableStreamError, "FORBIDDEN"),
        (404, errors.StreamNotFoundError, "NOT_FOUND"),
        (409, errors.DurableStreamError, "CONFLICT"),
        (410, errors.RetentionGoneError, "RETENTION_GONE"),
        (413, errors.DurableStreamError, "TOO_LARGE"),
        (429, errors.DurableStreamError, "RATE_LIMITED"),
        (500, errors.DurableStreamError, "SERVER_ERROR"),
        (503, errors.DurableStreamError, "BUSY"),
        (507, errors.DurableStreamError, "STORAGE_FULL"),
        (302, errors.DurableStreamError, "UNEXPECTED_STATUS"),
    ],
)
def test_status_to_error(status: int, kind: type[Exception], code: str) -> None:
    error = answer(status, retry_after="3")
    assert type(error) is kind
    assert (error.status, error.code, error.retry_after) == (status, code, 3.0)
    assert error.url == URL
    assert "secret" not in str(error)


def test_conflicts_by_what_they_are_about() -> None:
    closed = answer(409, method="POST", stream_closed="TRUE", stream_next_offset="9")
    assert isinstance(closed, errors.StreamClosedError)
    assert (closed.final_offset, closed.code, closed.url) == ("9", "STREAM_CLOSED", URL)
    exists = answer(409, method="PUT")
    assert isinstance(exists, errors.StreamExistsError)
    assert exists.code == "CONFLICT_EXISTS"
    seq = answer(409, method="POST", sent={"stream-seq": "1"})
    assert isinstance(seq, errors.SeqConflictError)
    body = b'{"error":{"code":"CONFLICT_CONTENT_TYPE","message":"the stream holds text"}}'
    other = answer(409, body, method="POST", sent={"stream-seq": "1"})
    assert type(other) is errors.DurableStreamError
    assert other.code == "CONFLICT_CONTENT_TYPE"
    gap = answer(409, method="POST", producer_expected_seq="3", producer_received_seq="5")
    assert isinstance(gap, errors.SequenceGapError)
    assert (gap.expected_seq, gap.received_seq) == (3, 5)
    stale = answer(403, method="POST", sent={"producer-id": "p"}, producer_epoch="4")
    assert isinstance(stale, errors.StaleEpochError)
    assert (stale.current_epoch, stale.code) == (4, "STALE_EPOCH")


def test_the_servers_sentence_is_the_message_on_one_printable_line() -> None:
    error = answer(400, b'{"error":{"code":"BAD_OFFSET","message":"no\\nsuch \\u001b[31moffset"}}')
    assert str(error) == f"GET {URL} answered 400: no such [31moffset."
    assert error.code == "BAD_OFFSET"
    assert error.details["error"]["code"] == "BAD_OFFSET"
    assert "<html>" not in str(answer(502, b"<html>Bad gateway</html>"))
    assert str(answer(500, b"\xff\xfe broken")).startswith(f"GET {URL} answered 500: ")


def test_a_failed_append_says_that_it_may_have_been_written() -> None:
    request = Request("POST", URL, idempotent=False)
    assert "may have been written" in str(error_from(Response(500, {}), request))
    assert "may have been written" not in str(error_from(Response(500, {}), Request("POST", URL)))
    assert "may have been written" not in str(error_from(Response(503, {"retry-after": "1"}), request))


def test_a_server_that_does_not_know_the_outcome_says_so() -> None:
    body = b'{"error":{"code":"OUTCOME_UNKNOWN","message":"the answer was not heard"}}'
    error = error_from(Response(503, {}, body), Request("POST", URL, idempotent=False))
    assert (error.status, error.code, error.retry_after) == (503, "OUTCOME_UNKNOWN", None)
    assert str(error).startswith(
        f"POST {URL} answered 503: the answer was not heard (the append may have been"
    )
    assert error_from(Response(503, {}), Request("POST", URL)).code == "BUSY"


@pytest.mark.parametrize(
    "url",
    [
        "http://host/a/../b",
        "http://host/a/%2E%2e",
        "http://host/.",
        "http://a..b/",
        "http://" + "a" * 64 + "/",
        "http://" + "ab." * 85 + "/",
        "http://\u00e9..b/",
        "http://" + "\u00e9" * 64 + "/",
    ],
)
def test_a_url_whose_path_or_host_stands_for_another_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        check_url(url)


def test_a_host_may_have_letters_of_any_language_and_a_final_dot() -> None:
    for url in ("http://b\u00fccher.example/s", "http://host./s", "http://[::1]:8080/s"):
        assert check_url(url) == url


def test_a_url_must_be_text() -> None:
    with pytest.raises(TypeError, match="must be text, not bytes"):
        check_url(b"http://host/")  # type: ignore[arg-type]


def test_numbers_and_truth_values_have_their_text_in_headers_and_parameters() -> None:
    assert [text_of(value) for value in (True, False, 3, 1.5, "a")] == ["true", "false", "3", "1.5", "a"]
    odd = object()
    assert text_of(odd) is odd  # what it is worth, `check_header` says


def test_a_header_must_be_text() -> None:
    with pytest.raises(TypeError, match="'X' must be text"):
        check_header("X", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be text, not int"):
        check_callers_headers([3])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["Content-Length", "transfer_encoding", " Host ", "Connection"])
def test_headers_that_say_where_a_message_ends_are_not_the_callers(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be set: it belongs to the connection"):
        check_callers_headers([name])


def test_a_client_may_set_the_headers_of_its_connections_but_not_those_of_bodies() -> None:
    check_callers_headers(["Connection", "Accept"], of_client=True)
    with pytest.raises(ValueError, match="cannot be set on a client"):
        check_callers_headers(["Content-Length"], of_client=True)


def test_without_parameters_the_url_stays() -> None:
    assert with_caller(Request("GET", URL + "?b=1&a=2"), {}, {}).url == URL + "?b=1&a=2"


def test_a_date_without_a_zone_is_taken_as_utc() -> None:
    headers = {
        "retry-after": "Wed, 21 Oct 2015 07:28:30 -0000",
        "date": "Wed, 21 Oct 2015 07:28:00 -0000",
    }
    assert parse_retry_after(headers) == 30.0
    assert parse_retry_after({"retry-after": headers["retry-after"]}) == 1.0  # whatever the time is there


def test_the_length_of_a_body_in_a_coding_is_not_known() -> None:
    assert content_length({"content-length": "12"}) == 12
    assert content_length({"content-length": "-1"}) is None
    assert content_length({}) is None
    assert content_length({"content-length": "12", "content-encoding": "gzip"}) is None
    assert content_length({"content-length": "12", "transfer-encoding": "chunked"}) is None


def test_an_error_may_be_a_mere_sentence_or_have_no_text_at_all() -> None:
    assert str(answer(400, b'{"error":"no such view"}')) == f"GET {URL} answered 400: no such view."
    assert answer(400, b'{"error":{"code":"bad code","message":7}}').code == "BAD_REQUEST"
    assert str(answer(400, b"[1]")).startswith(f"GET {URL} answered 400: the server refused")
    assert str(answer(400, b'"\\n \\t"')).startswith(f"GET {URL} answered 400: the server refused")


@pytest.mark.parametrize(
    ("authority", "header"),
    [
        ("host", None),
        ("@host", None),
        ("user@host", "Basic dXNlcjo="),  # user:
        ("user:secret@host:8080", "Basic dXNlcjpzZWNyZXQ="),
        ("us%65r:s%40@host", "Basic dXNlcjpzQA=="),  # user:s@
    ],
)
def test_the_user_of_a_url_is_sent_as_a_header(authority: str, header: str | None) -> None:
    sent = with_credentials(Request("GET", f"http://{authority}/s?a=1", {"accept": "*/*"}))
    assert sent.url == f"http://{authority.rpartition('@')[2]}/s?a=1"
    assert sent.headers.get("authorization") == header
    assert sent.headers["accept"] == "*/*"


def test_the_callers_own_authorization_wins() -> None:
    request = Request("GET", "http://user:secret@host/s", {"authorization": "Bearer x"})
    assert with_credentials(request).headers == {"authorization": "Bearer x"}


# -- URLs as they may be shown

SECRET_URL = "https://user:secret@host/v1/stream/x?token=secret&view=a"
SHOWN = "https://host/v1/stream/x?token=***&view=a"


def test_a_url_without_credentials_is_shown_as_it_is() -> None:
    assert shown_url(URL) is URL


def test_a_shown_url_has_no_credentials_and_opens_what_the_whole_one_does() -> None:
    shown = shown_url(SECRET_URL)
    assert isinstance(shown, ShownURL)
    assert shown == SHOWN
    assert [str(shown), f"{shown}", repr(shown)] == [SHOWN, SHOWN, repr(SHOWN)]
    assert check_url(shown) == SECRET_URL


def test_a_copy_of_a_shown_url_is_mere_text_and_opens_nothing() -> None:
    shown = shown_url(SECRET_URL)
    for copied in (str(shown), pickle.loads(pickle.dumps(shown)), copy.copy(shown)):
        assert (type(copied), copied) == (str, SHOWN)
        with pytest.raises(
            ValueError, match=r"was made to be shown: .* Open the stream with the whole URL"
        ) as caught:
            check_url(copied)
        assert SHOWN in str(caught.value)


def test_three_stars_that_hide_nothing_are_part_of_a_url() -> None:
    assert check_url("http://host/a***b?view=***") == "http://host/a***b?view=***"


def test_an_error_about_a_url_does_not_show_its_credentials() -> None:
    for url in ("ftp://user:secret@host/s?token=secret", "http://user:secret@host/a b?token=secret"):
        with pytest.raises(ValueError, match=r"\*\*\*") as caught:
            check_url(url)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://host:port/s", "its port is not a number from 0 to 65535"),
        ("http://host:65536/s", "its port is not a number from 0 to 65535"),
        ("http://[host/s", "Invalid IPv6 URL"),
    ],
)
def test_a_url_that_cannot_be_taken_apart_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"The URL {url!r} is not valid: {reason}.")):
        check_url(url)


# -- expected offsets, and what is retained


def test_an_append_that_expected_another_tail_is_shown_the_streams() -> None:
    sent = {"if-match": '"5"'}
    error = answer(412, b"the stream ends at 9", method="POST", sent=sent, stream_next_offset="9")
    assert isinstance(error, errors.OffsetConflictError)
    assert (error.expected_offset, error.current_offset, error.code) == ("5", "9", "CONFLICT_OFFSET")
    assert str(error) == f"POST {URL} answered 412: the stream ends at 9."
    # A condition of the caller's own, of which the protocol knows nothing.
    other = answer(412, method="POST")
    assert type(other) is errors.DurableStreamError
    assert other.code == "PRECONDITION_FAILED"


@pytest.mark.parametrize(("earliest", "usable"), [("7", "7"), ("now", None), (" ", None), (None, None)])
def test_an_offset_that_is_not_retained_is_shown_where_the_stream_begins(
    earliest: str | None, usable: str | None
) -> None:
    error = answer(410, **({} if earliest is None else {"stream_earliest_offset": earliest}))
    assert isinstance(error, errors.RetentionGoneError)
    assert error.earliest == usable


def test_a_source_is_named_by_its_path_as_it_stands_in_its_url() -> None:
    assert path_of("http://user@host/v1/stream/a%20b/é?token=secret") == "/v1/stream/a%20b/é"
    assert path_of("http://host") == "/"
