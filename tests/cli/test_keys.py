"""Keys: made, listed and revoked on the command line, and what a server with --auth makes of them."""

from __future__ import annotations

import http.client
import json
import stat
import subprocess
import time

import pytest

from durable_streams import DurableStream, DurableStreamError


def make(bare, *allow: str, name: str = "") -> str:
    options = [part for one in allow for part in ("--allow", one)]
    done = bare.run("key", "create", *options, "--name", name)
    assert done.returncode == 0, done.stderr
    assert b"shown once" in done.stderr
    return done.stdout.decode().strip()


def test_a_key_from_its_making_to_its_end(bare, serving):
    operator = make(bare, "*:**", name="operator")
    worker = make(bare, "read,append:jobs/**", name="worker")
    content = (bare.folder / "keys.toml").read_text()
    assert worker not in content
    assert operator not in content
    assert stat.S_IMODE((bare.folder / "keys.toml").stat().st_mode) == 0o600

    server = serving("--memory", "--auth", "keys.toml")
    as_operator, as_worker = {"DURABLE_STREAMS_TOKEN": operator}, {"DURABLE_STREAMS_TOKEN": worker}
    for path in ("jobs/1", "other"):
        assert bare.run("create", path, "-t", "text", "data", env=as_operator).returncode == 0
    assert bare.run("read", "jobs/1", "--token", worker).stdout == b"data"
    assert bare.run("append", "jobs/1", " more", env=as_worker).returncode == 0
    assert "do not allow read on other" in bare.error("read", "other", env=as_worker)
    assert "do not allow delete on jobs/1" in bare.error("delete", "jobs/1", env=as_worker)
    assert "wants credentials" in bare.error("read", "jobs/1")
    assert "does not know this token" in bare.error("read", "jobs/1", "--token", worker + "x")

    listed = [json.loads(line) for line in bare.ok("key", "ls", "--json").splitlines()]
    assert [(one["name"], one["allow"]) for one in listed] == [
        ("operator", ["*:**"]),
        ("worker", ["read,append:jobs/**"]),
    ]
    revoked = json.loads(bare.ok("key", "revoke", "worker", "--json"))
    assert revoked == {"revoked": [listed[1]["id"]]}
    url = f"{server.root}/jobs/1"
    wait_for_401(url, worker)
    with DurableStream(url, headers={"Authorization": f"Bearer {operator}"}) as stream:
        assert stream.head().exists
    assert "no key of the id or name 'worker'" in bare.error("key", "revoke", "worker")


def wait_for_401(url: str, token: str) -> None:
    stream = DurableStream(url, headers={"Authorization": f"Bearer {token}"})
    until = time.monotonic() + 30

    def ask_on() -> None:
        while time.monotonic() < until:
            stream.head()
            time.sleep(0.1)

    with pytest.raises(DurableStreamError) as refused:
        ask_on()
    assert (refused.value.status, refused.value.code) == (401, "UNAUTHORIZED")


def test_two_keys_of_one_name_and_comments_that_stay(bare):
    make(bare, "read:**", name="service")
    path = bare.folder / "keys.toml"
    path.write_text("# ours\n" + path.read_text())
    make(bare, "read:**", name="service")
    first, second = (json.loads(line)["id"] for line in bare.ok("key", "ls", "--json").splitlines())
    bare.ok("key", "revoke", first)
    assert json.loads(bare.ok("key", "ls", "--json"))["id"] == second
    assert path.read_text().startswith("# ours\n# Keys of durable-streams.")
    bare.ok("key", "revoke", "service")
    assert bare.ok("key", "ls") == b""
    make(bare, "read:**")
    assert b"read:**" in bare.ok("key", "ls")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--allow", "read"], "is no grant"),
        (["--allow", "fly:**"], "is no operation"),
        (["--allow", "read:**", "--expires", "100000000d"], "too long"),
        ([], "--allow"),
    ],
)
def test_a_key_that_makes_no_sense(bare, options, said):
    assert said in bare.error("key", "create", *options, code=2)
    assert not (bare.folder / "keys.toml").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "keys.toml: it cannot be read"),
        ("[[key]", "keys.toml: it is not TOML"),
        ("[[key]]\nallow = []", "missing required field `sha256`"),
        ('[[key]]\nallow = []\nsha256 = "x"', "64 hexadecimal digits"),
        ('[[key]]\nallow = ["x"]\nsha256 = "' + "0" * 64 + '"', "key 000000000000: 'x' is no grant"),
        ('[[key]]\ngrants = []\nsha256 = "x"', "unknown field `grants`"),
        ('[[signing_key]]\nallow = []\nsecret = "short"', "43 or more"),
    ],
)
def test_a_server_does_not_start_with_keys_that_it_cannot_use(bare, content, said):
    if content is not None:
        (bare.folder / "keys.toml").write_text(content)
    refusal = bare.error("serve", "--memory", "--port", "0", "--auth", "keys.toml")
    assert said in refusal
    assert "keys.toml" in refusal


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_that_others_reach_needs_a_word_on_who_may_do_what(bare, host):
    refusal = bare.error("serve", "--memory", "--port", "0", "--host", host)
    assert "--auth keys.toml" in refusal
    assert "--no-auth" in refusal
    make(bare, "*:**")
    for options in (["--no-auth"], ["--auth", "keys.toml"]):
        arguments = ("serve", "--json", "--memory", "--port", "0", "--host", host, *options)
        process = bare.spawn(*arguments, stdout=subprocess.PIPE)
        port = json.loads(process.stdout.readline())["url"].split("/")[2].rpartition(":")[2]
        connection = http.client.HTTPConnection("localhost", int(port))
        connection.request("PUT", "/v1/stream/s")
        assert connection.getresponse().status == (201 if "--no-auth" in options else 401)
        connection.close()
    both = ["--no-auth", "--auth", "keys.toml"]
    assert "--no-auth excludes auth" in bare.error("serve", "--memory", "--port", "0", *both, code=2)


def test_a_signed_url_needs_no_token(bare, serving):
    operator = make(bare, "*:**")
    assert "no signing key" in bare.error("sign", "jobs/1")
    assert (
        bare.run("key", "create", "--signing", "--allow", "read:jobs/**", "--name", "pages").returncode == 0
    )
    serving("--memory", "--auth", "keys.toml")
    assert bare.run("create", "jobs/1", "-t", "text", "data", "--token", operator).returncode == 0
    signed = bare.ok("sign", "jobs/1", "--expires", "1h").decode().strip()
    assert bare.ok("read", signed) == b"data"
    assert "403" in bare.error("append", signed, "more")
    assert "does not allow append" in bare.error("sign", "jobs/1", "--allow", "append", code=2)
    assert "does not allow read on other" in bare.error("sign", "other", code=2)
    assert "not for admin" in bare.error("sign", "jobs/1", "--allow", "admin", code=2)
    bare.ok("key", "revoke", "pages")
    assert "no signing key of the id or name 'x'" in bare.error("sign", "jobs/1", "--key", "x")
