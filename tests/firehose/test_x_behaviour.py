"""What docs/xdk-behaviour.md says of our `xdk.streaming` is what it does."""

from __future__ import annotations

import pytest

pytest.importorskip("requests")
from probes import PROBES
from run import OURS, observe
from table import documented


@pytest.mark.parametrize("name", PROBES)
def test_the_table_tells_what_ours_does(name: str) -> None:
    assert observe(OURS, name) == documented(PROBES[name])
