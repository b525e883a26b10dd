"""What docs/xdk-behaviour.md says of our `xdk.streaming` is what it does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("requests")
from probes import PROBES
from run import Ours, observe
from table import documented


@pytest.fixture(scope="module")
def ours() -> Iterator[Ours]:
    with Ours() as ours:
        yield ours


@pytest.mark.parametrize("name", PROBES)
def test_the_table_tells_what_ours_does(name: str, ours: Ours) -> None:
    assert observe(ours, name) == documented(PROBES[name])
