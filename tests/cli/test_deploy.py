"""What `deploy/` starts a server with is what `serve` takes, and systemd is informed as its protocol says."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from durable_streams.cli.serve import serve
from durable_streams.cli.units import Duration
from durable_streams.server.app import App

yaml = pytest.importorskip("yaml")
DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = ["kubernetes-sqlite.yaml", "kubernetes-nats.yaml"]
END = 3 + 5  # seconds that connections and the disk have, docs/limits.md
VARIABLES = {str(one.envvar) for one in serve.params if isinstance(one, click.Option)}
HEALTH = {"/health", "/health/live", "/health/ready"}


def test_systemd_hears_of_the_start_the_end_and_the_time_between(bare, tmp_path):
    name = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        listener.settimeout(60)
        environment = bare.environment({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000"})
        process = bare.spawn("serve", "--memory", "--port", "0", "--drain", "1ms", env=environment)
        heard = []

        def hear(state: bytes) -> None:
            while state not in heard:
                heard.append(listener.recv(100))

        hear(b"READY=1")
        assert b"serving" in process.stdout.readline(), "the address is printed by then"
        heard.clear()
        hear(b"WATCHDOG=1")
        process.terminate()
        hear(b"STOPPING=1")
        assert process.wait(60) == 0
    assert process.stderr.read() == b""


def test_a_watchdog_of_another_process_and_a_socket_that_is_gone_do_no_harm(bare, tmp_path):
    environment = bare.environment(
        {"NOTIFY_SOCKET": f"{tmp_path}/gone", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    )
    process = bare.spawn("serve", "--memory", "--port", "0", env=environment)
    assert b"serving" in process.stdout.readline()
    process.terminate()
    assert (process.wait(60), process.stderr.read()) == (0, b"")


@pytest.fixture
def unit() -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read(DEPLOY / "durable-streams.service")
    return parser["Service"]


def seconds(text: str) -> float:
    return Duration().convert(text, None, None)


def test_the_unit_names_what_there_is(unit: configparser.SectionProxy) -> None:
    assert unit["Type"] == "notify"
    _, command, *arguments = unit["ExecStart"].split()
    assert command == "serve"
    serve.make_context("serve", arguments)
    text = (DEPLOY / "durable-streams.service").read_text()
    named = set(re.findall(r"DURABLE_STREAMS_[A-Z_]+", text))
    assert named >= {"DURABLE_STREAMS_DATA_DIR", "DURABLE_STREAMS_ADMIN_PORT"}
    assert named <= VARIABLES
    assert f"%S/{unit['StateDirectory']}" in unit["Environment"]
    assert seconds(unit["TimeoutStopSec"]) > END


def test_the_lines_for_a_unit_that_listens_elsewhere_name_what_there_is() -> None:
    page = (DEPLOY.parent / "docs" / "operating.md").read_text()
    lines = page.partition("# systemctl edit durable-streams\n")[2].partition("\n\n")[0]
    named = dict(re.findall(r"(DURABLE_STREAMS_[A-Z_]+)=(\S+)", lines))
    assert named.keys() <= VARIABLES
    assert named["DURABLE_STREAMS_HOST"] == "0.0.0.0"
    given = set(re.findall(r"LoadCredential=(\S+):/", lines))
    assert {value.removeprefix("%d/") for value in named.values() if value.startswith("%d/")} == given
    assert "DURABLE_STREAMS_AUTH" in named, "it does not start there without"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    copy = tmp_path / "durable-streams.service"
    text = (DEPLOY / copy.name).read_text()
    copy.write_text(
        text.replace("/opt/durable-streams/bin/durable-streams", shutil.which("true") or "/bin/true")
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    assert copy.name not in done.stderr, done.stderr


def documents(name: str) -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / name).read_text())}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_starts_a_server_that_its_probes_find(name: str) -> None:
    found = documents(name)
    workload = found.get("StatefulSet") or found["Deployment"]
    pod = workload["spec"]["template"]
    [container] = pod["spec"]["containers"]
    command, *arguments = container["args"]
    assert command == "serve"
    options = serve.make_context("serve", arguments).params
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": options["port"], "admin": options["admin_port"]}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(options["admin_port"])
    assert pod["spec"]["terminationGracePeriodSeconds"] > options["drain"] + END
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] in ports
        assert asked["path"] in HEALTH
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live", "a restart helps no disk"
    assert container["readinessProbe"]["timeoutSeconds"] > 5, "/health answers within that"
    assert {one["name"] for one in container.get("env", [])} <= VARIABLES


@pytest.mark.parametrize("name", [*MANIFESTS, "compose.yaml"])
def test_what_listens_on_every_address_knows_its_callers_or_says_that_it_does_not(name: str) -> None:
    """The image sets the address; without one of the two a server does not start there."""
    assert "DURABLE_STREAMS_HOST=0.0.0.0" in (DEPLOY / "Dockerfile").read_text()
    if name == "compose.yaml":
        services = yaml.safe_load((DEPLOY / name).read_text())["services"]
        gateways = [one for one in services.values() if "DURABLE_STREAMS_STORE" in one.get("environment", {})]
        assert gateways
        for one in gateways:
            assert {"DURABLE_STREAMS_AUTH", "DURABLE_STREAMS_NO_AUTH"} & set(one["environment"])
        assert services["balancer"]["ports"] == ["127.0.0.1:4437:80"], "everyone there may do everything"
        return
    found = documents(name)
    pod = (found.get("StatefulSet") or found["Deployment"])["spec"]["template"]["spec"]
    [container] = pod["containers"]
    options = serve.make_context("serve", container["args"][1:]).params
    [secret] = [one for one in pod["volumes"] if "secret" in one]
    [mount] = [one for one in container["volumeMounts"] if one["name"] == secret["name"]]
    assert options["auth"].parent == Path(mount["mountPath"])
    assert mount["readOnly"]
    # The group of the pod reads it; the command that makes the secret is in the file.
    assert secret["secret"]["defaultMode"] == 0o440
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    command = f"create secret generic {secret['secret']['secretName']} --from-file={options['auth'].name}"
    assert command in (DEPLOY / name).read_text()


def test_a_folder_becomes_a_server_behind_tls_as_the_page_says(bare, tmp_path: Path) -> None:
    """The blocks of the section, one after the other, on other ports."""
    page = (DEPLOY.parent / "docs" / "operating.md").read_text()
    section = page.partition("## From nothing to a server behind TLS")[2].partition("\n## ")[0]
    made, served, asked, copied = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    programs = tmp_path / "programs"
    programs.mkdir()
    command = programs / "durable-streams"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m durable_streams "$@"\n')
    command.chmod(0o700)
    folder = tmp_path / "empty"
    folder.mkdir()
    path = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(tmp_path / "settings"),
    }
    environment = bare.environment(path)

    def shell(code: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shell(made)
    assert {one.stat().st_mode & 0o077 for one in folder.iterdir()} == {0}, "what is secret is its owner's"
    served = served.replace("--host 0.0.0.0", "--host 0.0.0.0 --port 0").replace("9464", "0")
    with subprocess.Popen(
        ["bash", "-c", f"exec {served}"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            ready = process.stdout.readline() if process.stdout else ""
            port, admin = re.findall(r":(\d+)/", ready)
            asked = asked.replace("4437", port).replace("9464", admin)
            said = shell(asked.replace("check ", "check --warning 1m --critical 1m "))
            assert said.count("OK - https://") == 2
            assert said.count("durable_streams_appends_total 1.0") == 2, "at both addresses"
            shell(copied)
            assert (folder / "restored" / "streams.db").stat().st_size > 0
        finally:
            process.terminate()
            assert process.wait(100) == 0


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_parts_of_a_manifest_belong_together(name: str) -> None:
    found = documents(name)
    workload = found.get("StatefulSet") or found["Deployment"]
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"] == found["Service"]["spec"]["selector"] == labels
    [port] = found["Service"]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (4437, "http")
    if "StatefulSet" in found:
        assert workload["spec"]["replicas"] == 1, "a data folder belongs to one server"
        volumes = {one["metadata"]["name"] for one in workload["spec"]["volumeClaimTemplates"]}
        [container] = workload["spec"]["template"]["spec"]["containers"]
        secrets = {one["name"] for one in workload["spec"]["template"]["spec"]["volumes"]}
        assert {one["name"] for one in container["volumeMounts"]} == volumes | secrets
    else:
        assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels


def test_the_paths_of_health_are_those_of_the_server() -> None:
    source = Path(App.handle.__code__.co_filename).read_text()
    assert set(re.findall(r'"(/health[a-z/]*)"', source)) == HEALTH
