"""The producers of a stream over HTTP: pages and refusals."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

from urllib.parse import quote, urlencode

import pytest


def test_pages_lead_through_all_producers(either_server, stream: str) -> None:
    path = quote(f"{stream}/ü ?")
    either_server.create(path, "text/plain")
    for number in range(5):
        for seq in range(2):
            either_server.append(
                path, b"x", "text/plain", producer_id=f"p{number}", producer_epoch="3", producer_seq=str(seq)
            )
    found, after, pages = [], "", 0
    while after is not None:
        answer = either_server.request(
            "GET", f"__ds/producers/{path}?{urlencode({'after': after, 'limit': 2})}"
        )
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        found += answer.json["producers"]
        after, pages = answer.json["next"], pages + 1
    assert found == [{"id": f"p{number}", "epoch": 3, "seq": 1} for number in range(5)]
    assert pages == 3


def test_there_are_none_of_a_stream_that_nobody_writes_to_so(either_server, stream: str) -> None:
    either_server.create(stream, "text/plain")
    either_server.append(stream, b"x", "text/plain")
    assert either_server.request("GET", f"__ds/producers/{stream}").json == {"producers": [], "next": None}
    assert either_server.request("GET", f"__ds/producers/{stream}-missing").status == 404


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after=" + "x" * 4097])
def test_what_makes_no_sense_is_refused(either_server, stream: str, query: str) -> None:
    either_server.create(stream, "text/plain")
    answer = either_server.request("GET", f"__ds/producers/{stream}?{query}")
    assert (answer.status, answer.json["error"]["code"]) == (400, "INVALID_REQUEST")
    assert either_server.request("GET", "__ds/producers/").status == 400
    assert either_server.request("POST", f"__ds/producers/{stream}").status == 405
