"""What the list of streams says of each, and which paths a prefix means."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.protocol.listing import describe, prefix_end
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import Policy, Retention, Segment, StreamState
from durable_streams.types import StreamInfo

# What a path can hold: text that has a form in UTF-8.
PATHS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def test_a_stream_is_described_with_all_that_it_is() -> None:
    state = StreamState(
        id=2,
        path="jobs/é",
        content_type="text/plain",
        tail=30,
        closed=True,
        ttl=60,
        forked_from="jobs/source",
        fork_position=5,
        lineage=(Segment(1, 5),),
        forks=3,
        earliest=10,
        created=1_800_000_000.25,
        records=4,
        appended=1_800_000_001.5,
        retention=Retention(Policy(max_age=7, max_bytes=9)),
    )
    assert describe(state, 1 / 3) == StreamInfo(
        path="jobs/é",
        content_type="text/plain",
        tail=format_offset(30),
        earliest=format_offset(10),
        bytes=20,
        closed=True,
        created="2027-01-15T08:00:00.250Z",
        ttl_seconds=60,
        forked_from="jobs/source",
        forks=3,
        records=4,
        last_append="2027-01-15T08:00:01.500Z",
        retention_max_age=7,
        retention_max_bytes=9,
        records_per_second=0.333,
    )


def test_a_stream_of_an_earlier_version_does_not_say_when_it_was_created() -> None:
    state = StreamState(id=1, path="s", content_type="a/b", expires_at="2030-01-01T00:00:00Z", deadline=1.0)
    described = describe(state)
    assert (described.created, described.records, described.last_append) == (None, None, None)
    assert (described.expires_at, described.ttl_seconds) == ("2030-01-01T00:00:00Z", None)
    assert (described.tail, described.bytes) == (described.earliest, 0)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        ("jobs/", "jobs0"),
        ("a", "b"),
        ("é", "ê"),
        ("a\ud7ff", "a\ue000"),  # the surrogates between them are no characters of a path
        ("a" + chr(sys.maxunicode), "b"),
        ("a" + 3 * chr(sys.maxunicode), "b"),
    ],
)
def test_where_the_paths_of_a_prefix_end(prefix: str, end: str) -> None:
    assert prefix_end(prefix) == end


@pytest.mark.parametrize("prefix", ["", chr(sys.maxunicode), 2 * chr(sys.maxunicode)])
def test_no_path_comes_after_all_of_a_prefix(prefix: str) -> None:
    assert prefix_end(prefix) is None


@given(PATHS, PATHS)
def test_a_path_has_a_prefix_exactly_where_it_lies_between_the_prefix_and_its_end(
    prefix: str, path: str
) -> None:
    end = prefix_end(prefix)
    for candidate in (path, prefix + path):
        lies_between = candidate >= prefix and (end is None or candidate < end)
        assert lies_between == candidate.startswith(prefix)
