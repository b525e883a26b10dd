"""The chat of the examples: an answer, a page that leaves in the middle, and one that comes back."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

EXAMPLE = Path(__file__).parents[2] / "examples" / "chat" / "chat_app.py"


@pytest.fixture(params=["folder", "server"])
def example(
    request: pytest.FixtureRequest, tmp_path: Path, shared_memory_server: Any, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """Give the application, with its answers in a folder or on a server."""
    where = str(tmp_path / "data") if request.param == "folder" else str(shared_memory_server.root)
    monkeypatch.setenv("STREAMS", where)
    monkeypatch.setenv("PAUSE", "0.002")
    spec = importlib.util.spec_from_file_location("chat_app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "chat_app", module)  # FastAPI resolves annotations there
    spec.loader.exec_module(module)
    return module


def test_an_answer_goes_on_where_the_page_left(example: ModuleType, tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    chat = f"/chat/{tmp_path.name}"
    with TestClient(example.app) as client:
        assert "EventSource" in client.get("/").text
        assert client.get(chat).status_code == 204
        assert client.post(chat, content="Does it?").status_code == 202
        assert client.post(chat, content="Again?").status_code == 409
        events = client.get(chat).text.removesuffix("\n\n").split("\n\n")
        data = [json.loads(event.partition("data: ")[2]) for event in events]
        assert data[0] == {"question": "Does it?"}
        assert "".join(data[1:-1]).startswith("You asked: Does it? That is")
        assert data[-1] == {"state": "completed"}
        left_at = events[7].partition("id: ")[2].partition("\n")[0]
        rest = client.get(chat, headers={"last-event-id": left_at}).text.removesuffix("\n\n").split("\n\n")
        assert [json.loads(event.partition("data: ")[2]) for event in rest] == data[8:]
        assert client.delete(chat).json() is False
