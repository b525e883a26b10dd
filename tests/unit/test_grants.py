"""Grants: what their texts mean, and which paths a pattern matches."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.protocol.globs import Glob, segments
from durable_streams.protocol.grants import EVERYTHING, OPERATIONS, Grant, PathPattern, Rule, operations_of

MATCHES = [
    ("jobs", ["jobs"], ["jobs/1", "job", "jobs/", ""]),
    ("jobs/*", ["jobs/1", "jobs/"], ["jobs", "jobs/1/2", "job/1"]),
    ("jobs/**", ["jobs", "jobs/1", "jobs/1/2/3"], ["jobs2", "other/jobs"]),
    ("**", ["a", "a/b", "a//b", "*", "**"], []),
    ("*", ["a", "**"], ["a/b"]),
    ("**/log", ["log", "a/log", "a/b/log"], ["log/a", "a/log/b", "xlog"]),
    ("a/**/z", ["a/z", "a/b/z", "a/z/z"], ["a", "z", "a/b", "a/z/b"]),
    ("a/**/**/**/z", ["a/z", "a/b/c/z"], ["a", "a/b"]),
    ("*/**", ["a", "a/b"], []),
    ("**/*/x", ["a/x", "a/b/x", "x/x"], ["x", "a/b"]),
    ("a/*/a/**/a", ["a/a/a/a", "a/b/a/c/d/a"], ["a/a/a", "a/b/a/c"]),
]


@pytest.mark.parametrize(("pattern", "inside", "outside"), MATCHES)
def test_what_a_pattern_matches(pattern: str, inside: list[str], outside: list[str]) -> None:
    matcher = PathPattern.parse(pattern)
    assert [path for path in inside if not matcher.matches(path)] == []
    assert [path for path in outside if matcher.matches(path)] == []


def by_definition(pattern: list[str], path: list[str]) -> bool:
    """Say the same by trying everything."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(by_definition(pattern[1:], path[skipped:]) for skipped in range(len(path) + 1))
    return bool(path) and pattern[0] in ("*", path[0]) and by_definition(pattern[1:], path[1:])


@given(
    st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=6),
    st.lists(st.sampled_from(["a", "b", "", "*"]), min_size=1, max_size=6),
)
def test_a_pattern_matches_what_its_definition_says(pattern: list[str], path: list[str]) -> None:
    assert PathPattern.parse("/".join(pattern)).matches("/".join(path)) == by_definition(pattern, path)


def test_many_stars_take_one_pass() -> None:
    """By trying everything, this takes longer than the universe has existed."""
    pattern = PathPattern.parse("/".join(["**", "a"] * 32))
    assert not pattern.matches("/".join(["a"] * 511 + ["b"]))
    assert pattern.matches("/".join(["a"] * 512))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("read", "'read' is no grant"),
        ("fly:**", "'fly' is no operation"),
        (":**", "'' is no operation"),
        ("read:", "1 to 1024 characters, this one has 0"),
        ("read:/jobs", "begins with a segment"),
        ("read:jobs/a*", "a * in a pattern stands for a whole segment"),
        ("read:" + "x" * 1025, "1 to 1024 characters"),
        ("read:" + "/".join("x" * 65), "at most 64 segments"),
    ],
)
def test_a_malformed_rule_is_refused_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        Rule.parse(text)
    assert said in str(refused.value)


def test_a_rule_reads_back() -> None:
    for text in ("read,append:jobs/**", "*:**", "create:a/*/b", "admin:**"):
        assert str(Rule.parse(text)) == text
    assert str(Rule.parse(" append , read : jobs/**")) == "read,append:jobs/**"
    assert Grant.of("read:a", "append:b").texts() == ["read:a", "append:b"]


def test_what_no_rule_allows_is_denied() -> None:
    grant = Grant.of("read,append:jobs/**", "create:jobs/new/*")
    allowed = {
        (operation, path) for operation in OPERATIONS for path in PATHS if grant.allows(operation, path)
    }
    assert allowed == {
        ("read", "jobs/1"),
        ("append", "jobs/1"),
        ("read", "jobs/new/1"),
        ("append", "jobs/new/1"),
        ("create", "jobs/new/1"),
    }
    assert not any(Grant().allows(operation, path) for operation in OPERATIONS for path in PATHS)
    assert all(EVERYTHING.allows(operation, path) for operation in OPERATIONS for path in PATHS)


PATHS = ["jobs/1", "jobs/new/1", "other"]


def test_somewhere_and_everywhere() -> None:
    grant = Grant.of("list:jobs/**", "subscribe:**")
    assert grant.allows_somewhere("list")
    assert not grant.allows_everywhere("list")
    assert grant.allows_everywhere("subscribe")
    assert not grant.allows_somewhere("read")


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], []),
        (["read:jobs"], []),
        (["list:jobs"], [("jobs", True)]),
        (["list:jobs/**"], [("jobs", True), ("jobs/", False)]),
        (["list:jobs/*"], [("jobs/", False)]),
        (["list:b/*/x", "list:a/**/x"], [("a", True), ("a/", False), ("b/", False)]),
        (["list:a/**", "list:a/b", "list:a/b/*", "list:a"], [("a", True), ("a/", False)]),
        (["list:a-b", "list:a/**"], [("a", True), ("a-b", True), ("a/", False)]),
        (["list:**", "list:a/b"], [("", False)]),
        (["list:*/x"], [("", False)]),
    ],
)
def test_where_the_paths_of_a_grant_are(rules: list[str], expected: list[tuple[str, bool]]) -> None:
    assert Grant.of(*rules).reach("list") == expected


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=4).map("/".join), max_size=4
    ),
    st.text("ab/-", min_size=1, max_size=6),
    st.text("ab/-", max_size=4),
)
def test_what_a_grant_allows_is_where_it_reaches(patterns: list[str], path: str, prefix: str) -> None:
    grant = Grant.of(*(f"list:{pattern}" for pattern in patterns))
    reach = grant.reach("list")
    assert reach == sorted(set(reach))
    within = [part for one in reach if (part := one.within(prefix)) is not None]
    holding = [one for one in within if path == one.text or (path.startswith(one.text) and not one.is_whole)]
    assert len(holding) <= 1
    if grant.allows("list", path) and path.startswith(prefix):
        assert holding
    assert all(one.text.startswith(prefix) for one in within)


def test_a_grant_is_bounded() -> None:
    with pytest.raises(ValueError, match="at most 64 rules"):
        Grant.of(*["read:**"] * 65)


# -- one stream


@pytest.mark.parametrize("path", ["jobs", "jobs/1/1", "a/*", "**", "*", "jobs/**", "a//b"])
def test_a_literal_pattern_is_matched_by_its_path_alone(path: str) -> None:
    pattern = PathPattern.literal(path)
    assert pattern.matches(path)
    others = ["", "jobs/", "jobs/1", "jobs/2/1", "a/b", "a/**", "x", f"{path}/", f"{path}/1", f"/{path}"]
    assert [other for other in others if pattern.matches(other)] == []
    assert not pattern.is_everything


def test_a_grant_on_one_stream() -> None:
    grant = Grant.on_path("jobs/*", ["read", "append", "read"], "alice", 1000.0)
    assert (grant.subject, grant.expires) == ("alice", 1000.0)
    assert grant.texts() == ["read,append:jobs/*"]
    assert [operation for operation in OPERATIONS if grant.allows(operation, "jobs/*")] == ["read", "append"]
    assert not any(grant.allows(operation, "jobs/1") for operation in OPERATIONS)
    assert grant.allows_somewhere("read")
    assert not Grant.on_path("**", OPERATIONS).allows_everywhere("read")


def test_a_grant_on_one_stream_may_allow_nothing() -> None:
    grant = Grant.on_path("jobs", [])
    assert not any(grant.allows(operation, "jobs") for operation in OPERATIONS)
    assert (grant.subject, grant.expires) == ("", None)


def test_operations_by_their_names_are_in_their_order() -> None:
    assert operations_of(["admin", " read", "append", "read"]) == ["read", "append", "admin"]
    assert operations_of(["*"]) == list(OPERATIONS)
    for unknown in ("fly", "", "Read"):
        with pytest.raises(
            ValueError, match=rf"^'{unknown}' is no operation; those are read, append, .+ for all"
        ):
            operations_of(["read", unknown])


@pytest.mark.parametrize(
    ("rules", "glob", "is_covered"),
    [
        ("subscribe:**", "**", True),
        ("subscribe:*/**", "**", True),  # the empty path is none
        ("subscribe:pub/**", "pub/**", True),
        ("subscribe:pub/**", "pub", True),
        ("subscribe:pub/**", "pub/*/log", True),
        ("subscribe:pub/**", "//pub//a/", True),
        ("subscribe:pub/**", "**", False),
        ("subscribe:pub/**", "*/a", False),
        ("subscribe:pub/**", "pub2", False),
        ("subscribe:pub/*", "pub/**", False),
        ("subscribe:pub/*", "pub/%2A", True),
        ("subscribe:pub/a", "pub/*", False),
        ("subscribe:*", "a*", True),
        ("subscribe:a/**/z", "a/**/b/**/z", True),
        ("subscribe:a/**/z", "a/**", False),
        ("read:**", "a", False),
        ("subscribe:a subscribe:a/*/**", "a/**", True),  # together
        ("subscribe:a/* subscribe:a/*/*", "a/**", False),
        ("", "a", False),
    ],
)
def test_patterns_that_grants_cover(rules: str, glob: str, is_covered: bool) -> None:
    assert Grant.of(*rules.split()).covers("subscribe", Glob(glob)) is is_covered


def test_a_comparison_that_takes_too_long_is_no_cover() -> None:
    text = "**/a" + "/*" * 60
    assert not Grant.of(f"read:{text}").covers("read", Glob(text))
    assert Grant.of(f"read:{text}", "read:*/**").covers("read", Glob(text))


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=4), min_size=1, max_size=3
    ),
    st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=4),
)
def test_cover_by_definition(rules: list[list[str]], pattern: list[str]) -> None:
    """What is covered has no path outside, and what is not has one, of a few segments here."""
    grant = Grant.of(*(f"read:{'/'.join(rule)}" for rule in rules))
    glob = Glob("/".join(pattern))
    matching = [path for path in SHORT_PATHS if glob.matches(segments(path))]
    assert grant.covers("read", glob) == all(grant.allows("read", path) for path in matching)


SHORT_PATHS = ["/".join(path) for size in range(1, 7) for path in product("abc", repeat=size)]
