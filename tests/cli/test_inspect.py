"""ls, info, ping and check."""

from __future__ import annotations

import json


def test_ls_lists_the_streams_below_the_root(cli):
    assert cli.ok("ls") == b""
    for path in ("b", "a b/c", "a b/d", "é"):
        cli.ok("create", path, "-t", "text", "1234")
    cli.ok("close", "b")
    assert cli.ok("ls").decode().splitlines() == ["a b/c", "a b/d", "b", "é"]
    assert cli.ok("ls", "a b/").decode().splitlines() == ["a b/c", "a b/d"]
    assert cli.ok("ls", "/a b/", "-n", "1").decode().splitlines() == ["a b/c"]
    entries = [json.loads(line) for line in cli.ok("ls", "--json").splitlines()]
    assert [(one["path"], one["bytes"], one["closed"]) for one in entries] == [
        ("a b/c", 4, False),
        ("a b/d", 4, False),
        ("b", 4, True),
        ("é", 4, False),
    ]
    long = cli.ok("ls", "--long", "b").decode().split()
    assert long[:3] == ["4B", "1", "closed"]
    assert long[-2:] == ["text/plain", "b"]


def test_ls_of_what_is_no_server_of_this_project(bare):
    assert "/v1/stream" in bare.error("ls", "--url", "http://127.0.0.1:1/elsewhere")


def test_info_says_all_that_is_known(cli):
    cli.ok("create", "s", "-t", "json", "[1,2]", "--ttl", "1h")
    cli.ok("fork", "s", "f")
    fields = json.loads(cli.ok("info", "s", "--json"))
    assert (fields["content_type"], fields["closed"], fields["ttl_seconds"]) == (
        "application/json",
        False,
        3600,
    )
    assert (fields["forks"], fields["forked_from"], fields["bytes"]) == (1, None, 6)
    assert (fields["records"], fields["records_per_second"]) == (1, round(1 / 60, 3))
    shown = cli.ok("info", "f").decode()
    assert "forked-from" in shown
    assert "created" in shown
    assert "404" in cli.error("info", "missing")


def test_info_names_the_producers(cli):
    cli.ok("create", "s", "-t", "json")
    assert json.loads(cli.ok("info", "s", "--json"))["producers"] is None
    cli.ok("append", "s", "--ndjson", "--producer-id", "p", "--epoch", "4", stdin=b"1")
    assert json.loads(cli.ok("info", "s", "--json"))["producers"] == [{"id": "p", "epoch": 4, "seq": 0}]
    assert "p (epoch 4, request 0)" in cli.ok("info", "s").decode()


def test_info_of_another_server_is_what_head_says(cli, http_peer):
    shown = json.loads(cli.ok("info", f"{http_peer.root.replace('/v1/stream', '')}/x", "--json"))
    assert shown["closed"] is False
    assert "forks" not in shown


def test_ping_measures_answers(cli):
    assert len(cli.ok("ping", "-c", "2").splitlines()) == 2
    measured = json.loads(cli.ok("ping", "--json"))
    assert len(measured["milliseconds"]) == 3
    assert 0 < measured["least"] <= measured["most"]


def test_check_tells_a_monitoring_system(cli, http_peer):
    assert cli.ok("check").startswith(b"OK - http://")
    slow = cli.run("check", "--warning", "0.001ms", "--critical", "1m")
    assert (slow.returncode, slow.stdout[:10], slow.stderr) == (1, b"WARNING - ", b"")
    http_peer.answer(503, b'{"error": {"code": "UNAVAILABLE", "message": "the disk is on fire"}}')
    broken = cli.run("check", http_peer.root, "--json")
    said = json.loads(broken.stdout)
    assert (broken.returncode, said["status"]) == (2, "CRITICAL")
    assert "the disk is on fire" in said["problem"]
    gone = cli.run("check", "http://127.0.0.1:1/v1/stream")
    assert (gone.returncode, gone.stdout[:11]) == (2, b"CRITICAL - ")
    assert b"--warning" in cli.run("check", "--warning", "2s", "--critical", "1s").stderr


def test_check_looks_at_how_far_workers_are_behind(cli):
    root = cli.root.rpartition("/")[0]
    name = f"checked-{cli.root.rpartition('/')[2]}"
    for stream in ("work", "wakes"):
        cli.ok("create", stream, "-t", "json")
    below = cli.root.removeprefix(root).strip("/")
    made = ("subscribe", name, "--stream", f"{below}/work", "--wake-stream", f"{below}/wakes")
    cli.ok("--url", root, *made)
    check = ("--url", root, "check", "--subscription", name)
    assert json.loads(cli.ok(*check, "--json"))["behind"] == 0
    cli.ok("append", "work", "12345")
    late = cli.run(*check, "--behind-warning", "1", "--behind-critical", "1KiB")
    assert (late.returncode, late.stdout[:10], b" behind=6B;1;1024;0" in late.stdout) == (
        1,
        b"WARNING - ",
        True,
    )
    assert cli.run(*check, "--behind-warning", "1", "--behind-critical", "2").returncode == 2
    missing = cli.run("--url", root, "check", "--subscription", "nobody")
    assert (missing.returncode, b"404" in missing.stdout) == (2, True)
    assert b"--behind-warning" in cli.run(*check, "--behind-warning", "2GiB").stderr


def test_check_looks_at_the_last_append_of_a_stream(cli):
    cli.ok("create", "full", "-t", "text", "1234")
    cli.ok("create", "empty", "-t", "text")
    said = json.loads(
        cli.ok("check", "--stream", "full", "--lag-warning", "1h", "--lag-critical", "2h", "--json")
    )
    assert (said["status"], 0 <= said["lag"] < 3600) == ("OK", True)
    late = cli.run("check", "--stream", "full", "--lag-warning", "0.001ms", "--lag-critical", "1h")
    assert (late.returncode, late.stdout[:10], b" lag=" in late.stdout) == (1, b"WARNING - ", True)
    empty = cli.run("check", "--stream", "empty")
    assert (empty.returncode, b"no append" in empty.stdout, b"lag=U;" in empty.stdout) == (2, True, True)
    missing = cli.run("check", "--stream", "missing")
    assert (missing.returncode, b"404" in missing.stdout) == (2, True)
    assert b"--lag-warning" in cli.run("check", "--stream", "full", "--lag-warning", "1h").stderr
