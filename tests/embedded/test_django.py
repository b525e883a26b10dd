"""The app for Django: a real project with users and sessions, its commands, and what it says to wrong settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_streams import DurableStream, stream

pytest.importorskip("django")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

PROJECT = Path(__file__).parent / "django_project"


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "DATA": str(folder),
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }


def manage(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "manage.py"), *arguments]
    return subprocess.run(
        command, env=environment(folder, **more), capture_output=True, text=True, check=False, timeout=60
    )


def test_a_project_with_users(run_server: Callable[..., Any], tmp_path: Path) -> None:
    """Views write without HTTP; browsers read what their session allows; the streams outlive the server."""
    assert manage(tmp_path, "migrate").returncode == 0
    command = [sys.executable, str(PROJECT / "serve_project.py")]
    server = run_server(command, environment(tmp_path)).wait_until_ready()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        assert client.get("/login/ada").text == "welcome"
        first, second = (client.get(f"/{view}/ada/{view}").json() for view in ("say", "say-in-a-thread"))
        words = client.get("/live/v1/stream/users/ada/words")
        assert (words.text, words.headers["stream-next-offset"]) == ("saysay-in-a-thread", second["offset"])
        assert first["offset"] < second["offset"]
        assert client.get("/live/v1/stream/users/other/words").status_code == 403
        client.cookies.clear()
        assert client.get("/live/v1/stream/users/ada/words").status_code == 401
        assert client.get("/nothing").status_code == 404
    assert server.terminate() in {0, -signal.SIGTERM}, server.error_output  # which Uvicorn passes on


def test_the_streams_in_a_process_of_their_own(run_server: Callable[..., Any], tmp_path: Path) -> None:
    settings = json.dumps({"STORE": str(tmp_path / "streams")})
    command = [sys.executable, str(PROJECT / "manage.py"), "runstreams", "0"]
    server = run_server(command, environment(tmp_path, DURABLE_STREAMS=settings)).wait_until_ready()
    DurableStream.create(f"{server.root}/a", content_type="text/plain", body="of a worker")
    with stream(f"{server.root}/a", live=False) as read:
        assert read.read_text() == "of a worker"
    taken = manage(tmp_path, "runstreams", str(server.port), DURABLE_STREAMS=settings)
    assert taken.returncode == 1
    assert "CommandError" in taken.stderr
    assert "Traceback" not in taken.stderr
    assert server.terminate() == 0, server.error_output


WRONG: list[tuple[Any, str]] = [
    ([], "DURABLE_STREAMS is a dictionary, not []"),
    ({"STORAGE": "x"}, "DURABLE_STREAMS has no 'STORAGE': it takes AUTHORIZE, CONFIG, PREFIX, STORE"),
    ({"STORE": 5}, "STORE is the path of a folder or a nats:// address, not 5"),
    ({"PREFIX": "live/"}, "PREFIX is a path such as '/streams', not 'live/'"),
    ({"AUTHORIZE": 5}, "AUTHORIZE is a name such as 'project.access.authorize', not 5"),
    ({"AUTHORIZE": "project_access.nothing"}, "AUTHORIZE cannot be imported"),
    ({"CONFIG": 5}, "CONFIG is a dictionary of settings of ServerConfig, not 5"),
    ({"CONFIG": {"data_dir": "x"}}, "CONFIG has 'data_dir': name the store as STORE"),
    ({"CONFIG": {"max_bodies": 1}}, "CONFIG has 'max_bodies', which is no setting of ServerConfig"),
    ({"CONFIG": {"max_body": -1}}, "CONFIG makes no sense"),
]
CHECK = """
import json, sys
import django
django.setup()
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings
said = []
for given in json.load(sys.stdin):
    with override_settings(DURABLE_STREAMS=given):
        try:
            call_command("check")
            said.append("")
        except SystemCheckError as error:
            said.append(str(error))
print(json.dumps(said))
"""


def test_wrong_settings_are_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env=environment(tmp_path, DJANGO_SETTINGS_MODULE="project_settings"),
        input=json.dumps([given for given, _ in WRONG]),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for said, (_, sentence) in zip(json.loads(done.stdout.splitlines()[-1]), WRONG, strict=True):
        assert sentence in said
        assert "durable_streams.E001" in said


def test_what_the_command_refuses(tmp_path: Path) -> None:
    for arguments, sentence in (
        (["runstreams", "somewhere"], "'somewhere' is no address"),
        (["runstreams", "0"], "AUTHORIZE needs Django beside the streams"),
    ):
        done = manage(tmp_path, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert sentence in done.stderr
    assert manage(tmp_path, "check").returncode == 0
