"""demo --firehose: feed, relay, server and readers fail, and every record is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("count", [3, 2000])
def test_any_input_survives(watch: Any, tmp_path: Path, count: int) -> None:
    (tmp_path / "in.ndjson").write_text("".join(f"{number % 7}\n" for number in range(count)))
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    program = watch.program(
        tmp_path, "demo", "--firehose", "--json", "--input", "in.ndjson", TMPDIR=str(scratch)
    )
    report = program.finish()
    assert (report["sent"], report["lost"], report["duplicated"], report["equal"]) == (count, 0, 0, True)
    assert {party["records"] for party in report["accounts"]} == {count}
    assert (report["relay_kills"], len(report["outages"]), report["reader_kills"]) == (3, 3, 1)
    assert json.dumps(report)
    assert not any(scratch.iterdir())
