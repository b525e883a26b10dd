"""What Prometheus reads: each number is one that can be counted from outside, and its own parsers take the text."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from durable_streams import (
    DurableStream,
    DurableStreamError,
    SyncIdempotentProducer,
    stream,
)
from durable_streams.protocol.grants import Grant
from durable_streams.server import ServerRequest, asgi_app
from durable_streams.server.app import App
from durable_streams.server.config import ServerConfig
from durable_streams.server.metrics import _metrics
from durable_streams.server.run import run_server
from durable_streams.server.subscriptions.lag import Lags
from durable_streams.stores.figures import CommitFigures, StoreFigures
from durable_streams.stores.memory import MemoryStore
from durable_streams.testing.background import Background

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana-dashboard.json"
OPERATING = ROOT / "docs" / "operating.md"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
PREFIX = "durable_streams_"


class Server:
    """A server in this process, with an address for operators."""

    def __init__(self, config: ServerConfig) -> None:
        async def main(stop: asyncio.Event, ready: Callable[[tuple[str, str]], None]) -> None:
            admin: list[str] = []
            await run_server(config, stop, lambda root: ready((root, admin[0])), admin.append)

        self.background = Background("metrics-test-server", main)
        self.root, self.metrics = self.background.value

    def get(
        self, url: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, str, bytes]:
        """Return status, content type and body of an answer."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url, body, method=method, headers=names)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers["content-type"], answer.read()
        except HTTPError as error:
            with error:
                return error.code, error.headers["content-type"], error.read()

    def samples(self) -> Samples:
        status, content_type, body = self.get(self.metrics)
        assert (status, content_type.partition(";")[0]) == (200, "text/plain")
        return {
            (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.samples()[name, tuple(sorted(labels.items()))]


@pytest.fixture(scope="module", params=["sqlite", "memory"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("metrics") if request.param == "sqlite" else None
    server = Server(ServerConfig(port=0, admin_port=0, data_dir=folder, long_poll_timeout=20))
    yield server
    server.background.stop()


def test_what_is_stored_under_load_is_counted(server: Server, stream: str) -> None:
    """Scraped all the while, no counter ever goes back, and at the end each has counted all of it."""
    root, before, number = server.root, server.samples(), 400
    seen: list[Samples] = []
    done = threading.Event()

    def scrape() -> None:
        while not done.is_set():
            seen.append(server.samples())

    def write(name: str) -> None:
        handle = DurableStream.create(f"{root}/{stream}/{name}", content_type="text/plain")
        with handle:
            for _ in range(number // 4):
                handle.append("12345")

    scraper = threading.Thread(target=scrape)
    writers = [threading.Thread(target=write, args=(str(one),)) for one in range(4)]
    scraper.start()
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    done.set()
    scraper.join()
    after = server.samples()
    assert seen
    course = [before, *seen, after]
    for name, labels in before:
        if name.endswith(("_total", "_count", "_bucket")) and not name.startswith("process"):
            values = [one[name, labels] for one in course]
            assert values == sorted(values), name

    def grown(name: str, *labels: tuple[str, str]) -> float:
        return after[name, labels] - before[name, labels]

    assert grown("appends_total") == number
    assert grown("append_bytes_total") == 5 * number
    assert grown("commit_commands_sum") == number + 4
    commits = grown("commit_commands_count")
    assert 0 < commits <= number + 4
    assert grown("commit_seconds_count") == commits
    assert grown("commit_seconds_bucket", ("le", "+Inf")) == commits
    assert grown("commit_seconds_sum") > 0
    assert (after["commit_queue_commands", ()], after["commit_queue_bytes", ()]) == (0, 0)
    assert grown("failed_commits_total") == 0


def test_reads_and_refusals_are_counted_by_kind(server: Server, stream: str) -> None:
    before = server.samples()
    url = f"{server.root}/{stream}"
    for path in ("", "?offset=-1", "?offset=now"):
        assert server.get(url + path)[0] == 404
    handle = DurableStream.create(url, content_type="text/plain", body="x")
    assert server.get(f"{url}?offset=-1")[0] == 200
    assert server.get(f"{url}?offset=-1&live=long-poll")[0] == 200
    with SyncIdempotentProducer(url, "p", epoch=1) as producer:
        producer.append("1")
        producer.flush()
    old = {"producer_id": "p", "producer_epoch": "0", "producer_seq": "0"}
    again = {"producer_id": "p", "producer_epoch": "1", "producer_seq": "0"}
    assert server.get(url, "POST", content_type="text/plain", **old)[0] == 400  # without a body
    for headers, status in ((old, 403), (again, 204)):
        assert server.get(url, "POST", b"1", content_type="text/plain", **headers)[0] == status
    handle.close()
    after = server.samples()

    def grown(name: str, **labels: str) -> float:
        key = name, tuple(labels.items())
        return after[key] - before.get(key, 0)

    assert grown("refusals_total", code="NOT_FOUND") == 3
    assert grown("reads_total", mode="catch-up") == 4
    assert grown("reads_total", mode="long-poll") == 1
    assert grown("duplicates_total") == 1
    assert grown("fenced_producers_total") == grown("refusals_total", code="STALE_EPOCH") == 1


def test_readers_are_counted_while_they_are_there(server: Server, stream: str) -> None:
    url = f"{server.root}/{stream}"
    with DurableStream.create(url, content_type="application/json") as handle:
        assert server.value("live_readers", mode="sse") == 0
        with handle.stream(live="sse") as response:
            items = response.iter_json()
            handle.append({"n": 1})
            assert next(items) == {"n": 1}
            assert server.value("live_readers", mode="sse") == 1
            assert server.value("open_answers") == 1


def test_the_number_of_series_does_not_depend_on_what_clients_send(server: Server, stream: str) -> None:
    server.get(f"{server.root}/{stream}")
    before = server.samples().keys()
    for number in range(30):
        DurableStream.create(f"{server.root}/{stream}/{number}").close()
        with pytest.raises(DurableStreamError):
            DurableStream(f"{server.root}/{stream}/no/{number}").head()
    assert server.samples().keys() == before


def test_subscriptions_and_how_far_behind_they_are(server: Server, stream: str) -> None:
    before = server.samples()
    wakes, data = f"{stream}-wakes", f"{stream}/data"
    name = f"metrics-{stream.replace('/', '-')}"
    DurableStream.create(f"{server.root}/{wakes}", content_type="application/json").close()
    asked = {"type": "pull-wake", "streams": [data], "wake_stream": wakes}
    url = f"{server.root}/__ds/subscriptions/{name}"
    put = server.get(url, "PUT", json.dumps(asked).encode(), content_type="application/json")
    assert put[0] == 201, put
    assert server.value("subscriptions", state="idle") == before["subscriptions", (("state", "idle"),)] + 1
    DurableStream.create(f"{server.root}/{data}", content_type="text/plain", body="seven b").close()
    while server.value("subscriptions", state="waiting") == 0:
        pass
    after = server.samples()
    assert after["subscription_lag_bytes", (("subscription", name),)] == 7
    assert after["subscriptions_lag_bytes", ()] == 7
    assert 0 <= after["subscriptions_oldest_wake_seconds", ()] < 60
    assert after["subscriptions_unknown_links", ()] == 0
    claim = server.get(f"{url}/claim", "POST", b'{"worker":"w"}', content_type="application/json")
    assert claim[0] == 200
    assert server.value("subscriptions", state="working") == 1
    assert server.get(url, "DELETE")[0] == 204
    assert server.samples().keys() == before.keys()


def test_openmetrics_is_given_to_who_asks_for_it(server: Server) -> None:
    status, content_type, body = server.get(
        server.metrics, accept="application/openmetrics-text; version=1.0.0"
    )
    assert (status, content_type.partition(";")[0]) == (200, "application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(body.decode())}
    assert {"durable_streams_appends", "durable_streams_commit_seconds"} <= names


def test_sizes_of_a_folder(server: Server, request: pytest.FixtureRequest) -> None:
    parts = {dict(labels)["part"] for name, labels in server.samples() if name == "store_bytes"}
    if "sqlite" in request.node.callspec.id:
        assert parts == {"file", "free", "log"}
        assert server.value("store_bytes", part="file") > 4096
        assert server.value("purge_backlog_streams") >= 0
    else:
        assert parts == set()


def test_the_address_for_operators_has_no_streams(server: Server) -> None:
    admin = server.metrics.removesuffix("/metrics")
    assert server.get(f"{admin}/v1/stream/x")[0] == 404
    assert server.get(f"{admin}/v1/stream/__ds/streams")[0] == 404
    assert server.get(server.metrics, "POST")[0] == 405
    assert server.get(server.metrics, "HEAD")[0] == 200
    assert server.get(server.metrics, host="evil.example")[0] == 403
    assert server.get(f"{admin}/health/ready")[0] == 200
    assert server.get(f"{server.root.removesuffix('/v1/stream')}/metrics")[0] == 404


def test_prefixes_are_counted_apart(stream: str) -> None:
    server = Server(ServerConfig(port=0, admin_port=0, metrics_prefix=(f"{stream}/a/", f"{stream}/")))
    try:
        before = {key for key in server.samples() if key[0].startswith("prefix_")}
        assert len(before) == 6
        for path, body in (("a/1", b"12"), ("b", b"3"), ("a/2", b"")):
            DurableStream.create(
                f"{server.root}/{stream}/{path}", content_type="text/plain", body=body
            ).close()
        for path in ("a/1", "b", "b"):
            DurableStream(f"{server.root}/{stream}/{path}").append("123")
            assert server.get(f"{server.root}/{stream}/{path}?offset=-1")[0] == 200
        # What was stored before, and what is none of theirs, does not count.
        headers = {"producer_id": "p", "producer_epoch": "0", "producer_seq": "0"}
        for _ in range(2):
            server.get(f"{server.root}/{stream}/b", "POST", b"4", content_type="text/plain", **headers)
        DurableStream.create(f"{server.root}/other", content_type="text/plain", body="1").close()
        found = {key: value for key, value in server.samples().items() if key[0].startswith("prefix_")}
        assert found == {
            (f"prefix_{name}_total", (("prefix", f"{stream}/{prefix}"),)): value
            for prefix, values in {"a/": (2, 5, 1), "": (4, 8, 2)}.items()
            for name, value in zip(("appends", "append_bytes", "reads"), values, strict=True)
        }
    finally:
        server.background.stop()


@pytest.mark.parametrize("prefixes", [("",), ("/jobs",), ("x" * 201,), tuple(map(str, range(33)))])
def test_a_prefix_that_cannot_be_one_is_refused(prefixes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"^metrics_prefix is "):
        ServerConfig(metrics_prefix=prefixes)


def test_callers_with_admin_get_the_metrics_where_the_streams_are() -> None:
    async def authorize(_operation: str, _path: str, request: ServerRequest) -> Grant | None:
        said = request.header("x-grant")
        return None if said is None else Grant.of(*said.split())

    async def answers(app: Any) -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server/v1/stream/__ds/") as client:
            admin = {"x-grant": "admin:**"}
            grants = (admin, {}, {"x-grant": "admin:jobs/**"}, {"x-grant": "read,list:**"})
            found = [await client.get("metrics", headers=grant) for grant in grants]
            found.append(await client.post("metrics", headers=admin))
        await app.shutdown()
        return found

    given, *refused = asyncio.run(answers(asgi_app(ServerConfig(), authorize=authorize)))
    assert given.headers["content-type"].startswith("text/plain")
    families = {family.name for family in text_string_to_metric_families(given.text)}
    assert {"durable_streams_appends", "durable_streams_refusals"} <= families
    assert [one.status_code for one in refused] == [401, 403, 403, 405]
    # Without grants everyone would get them.
    assert {one.status_code for one in asyncio.run(answers(asgi_app(ServerConfig())))} == {404}


def every_name(server: Server) -> set[str]:
    """Return the names of all samples. Those of NATS come from the code that makes them; all others are scraped."""
    server.get(f"{server.root}/not-there")  # a code is known from its first refusal on
    app = App(MemoryStore(), ServerConfig(metrics_prefix=("jobs/",)))
    figures = StoreFigures(CommitFigures(), 0, 0, 0, {"bucket": 1}, 0, connected=True)
    lags = Lags({"idle": 1}, 0, {"one": 1}, 0, 0.0)
    known = {sample.name for metric in _metrics(app.metrics, figures, lags) for sample in metric.samples}
    known |= {PREFIX + name for name, _ in server.samples() if not name.startswith("process")}
    return known | {name for name, _ in server.samples()}


def of_ours(samples: set[str]) -> set[str]:
    """Return the metrics of ours that samples belong to: the parts of a histogram are one."""
    names = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in samples}
    return {name for name in names if name.startswith(PREFIX) and not name.endswith("_created")}


def test_every_query_of_the_dashboard_names_metrics_that_exist(server: Server) -> None:
    known = every_name(server)
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    used = {name for query in queries for name in re.findall(r"\b(?:durable_streams|process)_\w+", query)}
    assert len(used) > 15
    assert used <= known
    assert of_ours(known) <= of_ours(used)


def test_the_table_of_metrics_has_all_of_them_and_no_other(server: Server) -> None:
    table = OPERATING.read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`) \| ", table, re.MULTILINE)
    named = {PREFIX + name for row in rows for name in re.findall(r"`([a-z_]+)(?:\{\w+\})?`", row)}
    assert named == of_ours(every_name(server))


def test_a_server_that_drains_is_not_ready_and_answers(tmp_path: Path) -> None:
    """It says that it ends, takes appends all the same, and a second signal ends the wait."""
    server = Server(ServerConfig(port=0, admin_port=0, data_dir=tmp_path, drain=600))
    origin, admin = server.root.removesuffix("/v1/stream"), server.metrics.removesuffix("/metrics")
    with DurableStream.create(f"{server.root}/s", content_type="text/plain") as handle:
        assert server.get(f"{origin}/health/ready")[0] == 200
        background = server.background
        background._loop.call_soon_threadsafe(background._stop.set)
        while server.get(f"{origin}/health/ready")[0] == 200:
            pass
        for url in (origin, admin):
            status, _, body = server.get(f"{url}/health/ready")
            assert (status, json.loads(body)["error"]["code"]) == (503, "DRAINING")
            assert server.get(f"{url}/health/live")[0] == server.get(f"{url}/health")[0] == 200
        handle.append("late")
        with stream(f"{server.root}/s", live=False) as response:
            assert response.read_text() == "late"
    background.stop()
