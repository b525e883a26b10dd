"""Names for servers: what outranks what, and where tokens go."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest


@pytest.fixture
def home(cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of settings of the commands that ``cli`` runs."""
    folder = cli.folder / "config"
    own = cli.environment

    def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
        return own({"XDG_CONFIG_HOME": str(folder), "HOME": str(cli.folder), **(extra or {})})

    monkeypatch.setattr(cli, "environment", environment)
    return folder


def test_a_name_stands_for_a_server_and_a_token(cli, home: Path, http_peer):
    (cli.folder / "token").write_text("THE-TOKEN\n")
    (cli.folder / "token").chmod(0o600)
    cli.ok("context", "add", "prod", "--url", http_peer.root + "/", "--token-file", "token")
    [file] = home.rglob("contexts.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "THE-TOKEN" not in file.read_text()
    cli.ok("--context", "prod", "head", "x")
    cli.ok("head", "--context", "prod", "x")
    cli.run("head", "x", env={"DURABLE_STREAMS_CONTEXT": "prod"})
    assert http_peer.tokens == ["Bearer THE-TOKEN"] * 3
    listed = json.loads(cli.ok("context", "list", "--json"))
    assert listed == {"name": "prod", "url": http_peer.root, "token_file": str(cli.folder / "token")}
    assert b"prod" in cli.ok("context", "list")
    cli.ok("context", "remove", "prod")
    assert cli.ok("context", "list") == b""


def test_a_token_reaches_no_server_that_it_is_not_for(cli, home: Path, http_peer):
    (cli.folder / "token").write_text("THE-TOKEN")
    cli.ok("context", "add", "bare", "--url", http_peer.root)
    cli.run("context", "add", "prod", "--url", cli.root, "--token-file", "token")
    cli.run("--context", "bare", "head", "x", env={"DURABLE_STREAMS_TOKEN": "OF-ANOTHER"})
    cli.ok("--context", "prod", "--url", http_peer.root, "head", "x")
    assert http_peer.tokens == [None, None]
    assert "leave --context out" in cli.error("--context", "prod", "head", f"{http_peer.root}/x", code=2)
    cli.ok("--context", "prod", "--url", http_peer.root, "--token", "MEANT", "head", "x")
    assert http_peer.tokens == [None, None, "Bearer MEANT"]


def test_an_option_outranks_a_context_and_that_the_environment(cli, home: Path):
    cli.ok("create", "here", "-t", "text", "x")
    cli.ok("context", "add", "gone", "--url", "http://127.0.0.1:1/v1/stream")
    root, cli.root = cli.root, "http://127.0.0.1:1/v1/stream"
    cli.ok("context", "add", "good", "--url", root)
    assert cli.ok("--context", "good", "ls") == b"here\n"
    assert cli.ok("--context", "gone", "--url", root, "read", "here") == b"x"


def test_mistakes_are_named(cli, home: Path):
    assert "there is none yet" in cli.error("--context", "x", "head", "s")
    cli.ok("context", "add", "a", "--url", "http://127.0.0.1:1/v1/stream", "--token-file", "missing")
    assert "(a)" in cli.error("--context", "x", "head", "s")
    assert "No such file" in cli.error("--context", "a", "head", "s")
    assert "absolute" in cli.error("context", "add", "b", "--url", "example.com", code=2)
    assert "letters" in cli.error("context", "add", "../b", "--url", "http://h/v1/stream", code=2)
    assert "no context 'b'" in cli.error("context", "remove", "b")
    (cli.folder / "open").write_text("T")
    (cli.folder / "open").chmod(0o644)
    warned = cli.run("context", "add", "b", "--url", "http://h/v1/stream", "--token-file", "open")
    assert (warned.returncode, b"chmod 600" in warned.stderr) == (0, True)
    [file] = home.rglob("contexts.json")
    file.write_text("{")
    assert "repair or remove" in cli.error("context", "list")
