from __future__ import annotations

import pytest

from durable_streams.protocol.globs import MAX_WILDCARDS, Glob, is_regular, segments


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("events/*", ["events/a", "/events//b/"], ["events", "events/a/b", "other/a"]),
        ("events/**", ["events", "events/a", "events/a/b"], ["event", "a/events"]),
        ("**", ["a", "a/b/c"], []),
        ("**/log", ["log", "a/log", "a/b/log"], ["log/a", "a/logs"]),
        ("a/**/z/*", ["a/z/1", "a/b/c/z/1", "a/z/z/1"], ["a/z", "a/b", "z/1"]),
        ("a*", ["a*"], ["ab", "a"]),  # no partial wildcards
        ("a/%2A", ["a/*"], ["a/b", "a/%2A"]),
        ("*/*", ["a/b"], ["a", "a/b/c"]),
    ],
)
def test_what_matches(pattern: str, matching: list[str], others: list[str]) -> None:
    glob = Glob(pattern)
    assert [path for path in matching if not glob.matches(segments(path))] == []
    assert [path for path in others if glob.matches(segments(path))] == []


def test_two_wildcards_in_a_row_are_one() -> None:
    assert Glob("/".join(["**"] * 500) + "/x").matches(["a", "x"])


def test_many_wildcards_cost_no_exponential_time() -> None:
    pattern = "/".join(["**", "a"] * MAX_WILDCARDS) + "/b"
    assert not Glob(pattern).matches(["a"] * 500)


@pytest.mark.parametrize("pattern", ["", "///", "/".join(["**", "a"] * (MAX_WILDCARDS + 1))])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match="a pattern has"):
        Glob(pattern)


@pytest.mark.parametrize(
    ("path", "regular"), [("a", True), ("a/b", True), ("a//b", False), ("/a", False), ("a/", False)]
)
def test_empty_segments(path: str, *, regular: bool) -> None:
    assert is_regular(path) is regular
