"""serve: one ready line, settings from options and the environment, clean ends, clear refusals."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import httpx
import pytest

from durable_streams.testing.nats import NatsCluster


def test_the_ready_line_tells_where_the_streams_and_the_data_are(bare, serving):
    server = serving("--data-dir", "data")
    assert server.ready == f"durable-streams: serving {server.root} ({bare.folder.resolve()}/data)\n"
    bare.ok("create", "s", "-t", "text", "kept")
    assert server.stop() == (0, b"")
    server.start()
    assert bare.ok("read", "s") == b"kept"


def test_the_ready_line_for_machines(bare):
    process = bare.spawn("serve", "--json", "--port", "0", "--memory")
    ready = json.loads(process.stdout.readline())
    assert ready["url"].endswith("/v1/stream")
    assert ready["data_dir"] is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("store", [["--memory"], ["--data-dir", "data"]])
def test_signals_end_it_cleanly_with_live_readers(bare, serving, number, store):
    server = serving(*store)
    bare.ok("create", "s", "-t", "text", "x")
    for live in ("sse", "long-poll"):
        assert bare.spawn("tail", "s", "--live", live).stdout.read(1) == b"x"
    assert server.stop(number) == (0, b"")


def test_settings_come_from_the_environment(bare):
    settings = {
        "DURABLE_STREAMS_PORT": "0",
        "DURABLE_STREAMS_DATA_DIR": "elsewhere",
        "DURABLE_STREAMS_MAX_BODY": "10",
    }
    process = bare.spawn("serve", env=bare.environment(settings))
    bare.root = process.stdout.readline().split()[2].decode()
    assert (bare.folder / "elsewhere").is_dir()
    assert "413" in bare.error("create", "s", "-t", "text", "more than ten bytes")


def test_an_option_outranks_the_environment(bare):
    for options, name, value in (
        (["--memory"], "DURABLE_STREAMS_DATA_DIR", "folder"),
        (["--data-dir", "folder"], "DURABLE_STREAMS_MEMORY", "1"),
    ):
        process = bare.spawn("serve", "--json", "--port", "0", *options, env=bare.environment({name: value}))
        in_memory = json.loads(process.stdout.readline())["data_dir"] is None
        assert in_memory == (options == ["--memory"])
    both = {"DURABLE_STREAMS_MEMORY": "1", "DURABLE_STREAMS_DATA_DIR": "folder"}
    assert "exclude each other" in bare.error("serve", "--port", "0", code=2, env=both)


ADDRESSES = {
    "public-url": "https://example.com/streams",
    "trusted-proxies": "10.0.0.0/8, 192.168.0.1",
    "cors-origins": "https://app.example.com,https://*.example.org",
    "cors-credentials": "1",
    "allowed-hosts": "example.com,*.example.org",
    "cache": "private",
    "keep-alive": "7.5",
}


@pytest.mark.parametrize("way", ["options", "environment"])
def test_g12_what_browsers_and_proxies_need_is_an_option(bare, way):
    options, environment = [], {}
    for name, value in ADDRESSES.items():
        if way == "options":
            options += [f"--{name}"] if name == "cors-credentials" else [f"--{name}", value]
        else:
            environment["DURABLE_STREAMS_" + name.upper().replace("-", "_")] = value
    arguments = ("serve", "--json", "--port", "0", "--memory", *options)
    process = bare.spawn(*arguments, env=bare.environment(environment))
    root = json.loads(process.stdout.readline())["url"]
    connection = http.client.HTTPConnection(root.split("/")[2])
    headers = {"Host": "streams.example.org", "Origin": "https://x.example.org", "Stream-Closed": "true"}
    connection.request("PUT", "/v1/stream/s", headers=headers)
    created = connection.getresponse()
    assert created.read() == b""
    assert created.headers["Location"] == "https://example.com/streams/v1/stream/s"
    assert created.headers["Access-Control-Allow-Origin"] == "https://x.example.org"
    assert created.headers["Access-Control-Allow-Credentials"] == "true"
    connection.request("GET", "/v1/stream/s")
    read = connection.getresponse()
    assert read.headers["Cache-Control"].startswith("private")
    read.read()
    connection.request("GET", "/v1/stream/s", headers={"Host": "elsewhere.example"})
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--public-url", "example.com"], "public-url"),
        (["--trusted-proxies", "10.0.0.0/99"], "trusted-proxies"),
        (["--cors-origins", "example.com"], "cors-origins"),
        (["--cors-credentials"], "cors-credentials"),
        (["--allowed-hosts", "http://example.com"], "allowed-hosts"),
        (["--keep-alive", "0"], "keep-alive"),
        (["--cache", "none"], "cache"),
    ],
)
def test_g12_options_that_make_no_sense(bare, options, said):
    assert said in bare.error("serve", "--port", "0", "--memory", *options, code=2)


def test_a_taken_port(bare, serving):
    server = serving("--memory")
    assert f"127.0.0.1:{server.port}" in bare.error("serve", "--memory", "--port", str(server.port))


def test_a_folder_that_another_server_has_open(bare, serving):
    serving("--data-dir", "data")
    assert "data" in bare.error("serve", "--port", "0", "--data-dir", "data")


def test_a_folder_that_is_a_file(bare):
    (bare.folder / "data").write_bytes(b"")
    assert "data" in bare.error("serve", "--port", "0", "--data-dir", "data")


def test_a_host_that_is_not_ours(bare):
    bare.error("serve", "--memory", "--port", "0", "--host", "host.invalid")


def test_nobody_reads_the_ready_line(bare):
    process = bare.spawn("serve", "--memory", "--port", "0", stdout=subprocess.PIPE)
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, b"")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--store", "nats://h", "--memory"], "--store and --memory exclude each other"),
        (["--store", "nats://h", "--data-dir", "data"], "--store and --data-dir exclude each other"),
        (["--store", "http://user:secret@h"], "begins with nats:// or tls://"),
        (["--store", ""], "nats://HOST:PORT"),
        (["--store", "nats://h", "--nats-name", "no dots."], "cannot name a bucket"),
        (["--store", "nats://h", "--nats-replicas", "9"], "--nats-replicas"),
        (["--store", "nats://h", "--nats-storage", "tape"], "--nats-storage"),
        (["--store", "nats://h", "--nats-credentials", "missing.creds"], "missing.creds"),
        (["--memory", "--nats-name", "x"], "--nats-name needs --store"),
    ],
)
def test_settings_of_nats_that_make_no_sense(bare, options, said):
    refusal = bare.error("serve", "--port", "0", *options, code=2)
    assert said in refusal
    assert "secret" not in refusal


def test_nats_that_cannot_be_reached(bare):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # not listening: it refuses
        store = f"nats://user:secret@127.0.0.1:{nobody.getsockname()[1]}"
        refusal = bare.error("serve", "--port", "0", env={"DURABLE_STREAMS_STORE": store})
    assert "127.0.0.1" in refusal
    assert "secret" not in refusal


def test_streams_on_nats(bare, serving, tmp_path):
    with NatsCluster(tmp_path / "nats", 1) as cluster:
        host = cluster.store.removeprefix("nats://")
        options = ("--store", f"nats://user:secret@{host}", "--nats-name", "here", "--nats-replicas", "1")
        server = serving(*options, "--max-streams-in-memory", "10")
        assert server.ready == f"durable-streams: serving {server.root} (NATS {host} as here)\n"
        bare.ok("create", "s", "-t", "text", "kept")
        other = serving("--store", cluster.store, "--nats-name", "here")
        assert bare.ok("read", "s") == b"kept"
        assert (other.stop(), server.stop()) == ((0, b""), (0, b""))


def test_streams_on_nats_for_machines(bare, tmp_path):
    with NatsCluster(tmp_path / "nats", 1) as cluster:
        options = ("--store", cluster.store, "--nats-replicas", "1")
        process = bare.spawn("serve", "--json", "--port", "0", *options)
        ready = json.loads(process.stdout.readline())
        host = cluster.store.removeprefix("nats://")
        assert (ready["data_dir"], ready["store"]) == (None, f"NATS {host} as durable-streams")


def test_a_unix_socket_instead_of_a_port(bare, tmp_path):
    # The path of a socket has to be short, whatever folder the tests have.
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/s"
        process = bare.spawn("serve", "--memory", "--uds", path, "--uds-mode", "660", "--json")
        ready = json.loads(process.stdout.readline())
        assert (ready["url"], ready["uds"]) == ("http://localhost/v1/stream", path)
        assert Path(path).stat().st_mode & 0o777 == 0o660
        with httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client:
            assert client.put(f"{ready['url']}/x").status_code == 201
        process.terminate()
        assert (process.wait(100), process.stderr.read()) == (0, b"")
        assert "three digits" in bare.error("serve", "--uds", path, "--uds-mode", "9", code=2)
