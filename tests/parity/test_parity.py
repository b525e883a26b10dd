"""What the official packages offer is here too, or on the list of deliberate differences; the page shows the list."""

from __future__ import annotations

from collections import Counter

import pytest
from compare import Difference, compare
from page import PAGE, differences, entries, render
from record import PACKAGES, load


def listed() -> list[str]:
    return [place for entry in entries() for place in entry.places]


def test_every_difference_is_deliberate_and_every_entry_of_the_list_differs() -> None:
    assert sorted(differences()) == sorted(listed())


def test_no_place_is_listed_twice_and_each_has_a_reason() -> None:
    assert [place for place, times in Counter(listed()).items() if times > 1] == []
    assert [entry.places for entry in entries() if not entry.why.strip() or not entry.places] == []


def test_the_places_of_an_entry_differ_in_the_same_way() -> None:
    found = differences()
    for entry in entries():
        assert len({(found[place].official, found[place].ours) for place in entry.places}) == 1, entry


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render()


def test_the_recorded_packages_are_the_ones_that_the_script_installs() -> None:
    for package in PACKAGES:
        assert len(load(package.file)) >= 5


FUNCTION = {
    "kind": "function",
    "parameters": {"url": "positional or keyword", "live": "keyword only, default 'auto'"},
}


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        (
            {"url": "positional or keyword", "live": "keyword only, default 'auto'", "more": "keyword only"},
            [],
        ),
        ({"url": "positional or keyword", "live": "positional or keyword, default 'auto'"}, []),
        ({"url": "keyword only", "live": "keyword only, default 'auto'"}, ["f(url)"]),
        ({"live": "positional or keyword, default 'auto'", "url": "positional or keyword"}, ["f(url)"]),
        ({"url": "positional or keyword", "live": "keyword only, default True"}, ["f(live) default"]),
        ({"url": "positional or keyword", "live": "keyword only"}, ["f(live) default"]),
        ({"url": "positional or keyword"}, ["f(live)"]),
    ],
)
def test_a_parameter_that_a_call_can_miss_is_a_difference(
    parameters: dict[str, str], found: list[str]
) -> None:
    ours = {"f": {"kind": "function", "parameters": parameters}}
    assert [difference.place for difference in compare({"f": FUNCTION}, ours)] == found


def test_a_missing_name_is_a_difference() -> None:
    assert compare({"f": FUNCTION}, {}) == [Difference("f", "function", "not there")]
