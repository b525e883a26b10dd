"""What is made from a run of the benchmarks: its schema, the tables, the chart, the comparison."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest

TOOL = Path(__file__).parents[2] / "benchmarks/record.py"
SHAPE = "64 connections, 100 bytes"


@pytest.fixture(scope="module")
def record() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(record: ModuleType) -> dict[str, Any]:
    return {
        "schema": 1,
        "machine": {"system": "Linux", "cores": 2},
        "versions": {"Node": "0.3.7"},
        "rounds": 3,
        "missing": {"Caddy": "It was not found."},
        "rows": [
            record.row(SHAPE, "appends/s", "ours, SQLite", [1000.0, 1100.0, 1050.0], "more"),
            record.row(SHAPE, "p99 ms", "ours, SQLite", [2.0, 2.1, 2.2], "less"),
            record.row(SHAPE, "appends/s", "Node <files>", [100.0, 110.0, 105.0], "more"),
        ],
    }


def test_run_is_read_as_it_was_written(record: ModuleType, run: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run))
    assert record.load(path) == run


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": 2}, "schema 1"),
        ({"rows": None}, "has no rows"),
        ({"rows": [{"samples": []}]}, "has no samples"),
        ({"rows": [{"samples": [1.0], "better": "maybe"}]}, "whether more is better"),
        ({"rows": [{"samples": [1.0], "better": "more"}]}, "what it is of"),
    ],
)
def test_what_is_no_run_is_refused(
    record: ModuleType, run: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(record.RecordError, match=sentence):
        record.check({**run, **change})


def test_medians_must_be_those_of_the_samples(record: ModuleType, run: dict[str, Any]) -> None:
    run["rows"][0]["median"] = 9999.0
    with pytest.raises(record.RecordError, match="not what its samples give"):
        record.check(run)


def test_comparison_names_what_is_worse_beyond_the_noise(record: ModuleType, run: dict[str, Any]) -> None:
    new = copy.deepcopy(run)
    new["rows"][0] = record.row(SHAPE, "appends/s", "ours, SQLite", [950.0, 1000.0, 960.0], "more")
    assert record.compare(run, new) == []  # within the spread of the rounds
    new["rows"][0] = record.row(SHAPE, "appends/s", "ours, SQLite", [700.0, 710.0, 720.0], "more")
    new["rows"][1] = record.row(SHAPE, "p99 ms", "ours, SQLite", [4.2, 4.2, 4.2], "less")
    rate, latency = record.compare(run, new)
    assert "appends/s 710, was 1,050" in rate
    assert "2.00 times worse" in latency
    assert record.compare(new, run) == []  # better is no regression


def test_tables_replace_what_was_between_the_markers(record: ModuleType, run: dict[str, Any]) -> None:
    text = f"# Title\n\n{record.BEGIN}\nold\n{record.END}\n\nlast\n"
    new = record.replace_between(text, record.tables(run))
    assert "| ours, SQLite | 1,050 ± 10% | 2.1 ± 10% |" in new
    assert "Not measured: Caddy. It was not found." in new
    assert "old" not in new
    assert new.startswith("# Title\n")
    assert new.endswith("\n\nlast\n")
    assert record.replace_between(new, record.tables(run)) == new
    with pytest.raises(record.RecordError, match="no <!-- peers"):
        record.replace_between("none", "x")


def test_chart_has_a_bar_for_each_server(record: ModuleType, run: dict[str, Any]) -> None:
    svg = ET.fromstring(record.chart(run))
    bars = svg.findall("{http://www.w3.org/2000/svg}rect")
    assert [bar.get("class") for bar in bars] == ["ours", "peer"]
    assert float(bars[0].get("width", 0)) == 10 * float(bars[1].get("width", 0))
    run["rows"] = run["rows"][1:2]
    with pytest.raises(record.RecordError, match="has no appends/s"):
        record.chart(run)


def test_command_publishes_and_compares(
    record: ModuleType,
    run: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "README.md").write_text(f"{record.BEGIN}{record.END}")
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run))
    monkeypatch.setattr(record, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["record.py", "publish", str(path)])
    assert record.main() == 0
    assert "1,050" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "appends.svg").exists()
    monkeypatch.setattr(sys, "argv", ["record.py", "compare", str(path), str(path)])
    assert record.main() == 0
    assert "Nothing is worse" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["record.py", "publish", str(tmp_path / "none.json")])
    assert record.main() == 1
