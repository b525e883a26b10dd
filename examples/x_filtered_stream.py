"""X API v2's filtered stream as a durable stream: it reconnects by itself, and stores no post twice.

pip install .    # in a checkout
durable-streams serve --port 4437

X_BEARER_TOKEN=... python examples/x_filtered_stream.py http://127.0.0.1:4437/v1/stream/posts --rule "cat has:images"

Without an account, against a local imitation of X (pip install ./xdk):

python examples/x_filtered_stream.py http://127.0.0.1:4437/v1/stream/posts --imitation

durable-streams tail posts
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError  # noqa: A004 - not the built-in before 3.11
from contextlib import contextmanager
from typing import Any

import urllib3

from durable_streams import DurableStreamError
from durable_streams.firehose import X_SCHEDULE, Attempt, FirehoseStream, StreamConfig, StreamError, backfill
from durable_streams.relay import Relay, RelayReport

X = "https://api.x.com"
STREAM = "/2/tweets/search/stream"
FIELDS = {"tweet.fields": "created_at,author_id,lang"}


def main() -> int:
    args = parse_arguments()
    with imitation() if args.imitation else x() as (api, token):
        for value in args.rule:
            add_rule(api, token, value)
        feed = FirehoseStream(
            api + STREAM,
            config=StreamConfig(
                max_retries=-1,
                schedule=X_SCHEDULE,  # the waits that X asks for
                stall_timeout=30.0,  # X sends a heartbeat every 20 seconds
                on_error=lambda error: print(f"\n{error}", file=sys.stderr),
            ),
            headers={"Authorization": f"Bearer {token}"},
            params=with_backfill() if args.backfill else FIELDS,
        )
        relay = Relay(feed, args.target, id_field="data.id")
        print(relay.guarantee)
        return run(relay)


def with_backfill() -> Callable[[Attempt], Mapping[str, Any]]:
    """Ask for what was missed: in an outage, and between two runs of this program."""
    after_outage = backfill(FIELDS)

    def params(attempt: Attempt) -> Mapping[str, Any]:
        return {**FIELDS, "backfill_minutes": 5} if attempt.number == 1 else after_outage(attempt)

    return params


def run(relay: Relay) -> int:
    """Relay until Ctrl-C, which waits until everything read is stored."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(relay.run)
        try:
            follow(relay, running)
        except KeyboardInterrupt:
            relay.stop()
        try:
            report = running.result()
        except (DurableStreamError, StreamError) as error:
            print(f"\nerror: {error}", file=sys.stderr)
            return 1
    print(f"\r{line(report)}")
    return 0


def follow(relay: Relay, running: Future[RelayReport]) -> None:
    while not running.done():
        print(f"\r{line(relay.report())}", end="", flush=True)
        try:
            running.exception(timeout=1)
        except TimeoutError:
            continue


def line(report: RelayReport) -> str:
    rate = report.records / max(report.seconds, 1e-9)
    return (
        f"{report.records:,} stored ({rate:,.1f}/s), {report.skipped:,} known already, "
        f"{report.reconnects} reconnects "
    )


def add_rule(api: str, token: str, value: str) -> None:
    """Add a rule to those of the app, unless it is there."""
    answer = urllib3.request(
        "POST",
        f"{api}{STREAM}/rules",
        json={"add": [{"value": value}]},
        headers={"Authorization": f"Bearer {token}"},
    )
    if answer.status >= 300:
        sys.exit(f"error: the rule {value!r} is refused: {answer.data.decode(errors='replace')}")


@contextmanager
def x() -> Iterator[tuple[str, str]]:
    """Yield where X's API is, and the token for it."""
    token = os.environ.get("X_BEARER_TOKEN")
    if not token:
        sys.exit("error: set X_BEARER_TOKEN to the bearer token of your app, or use --imitation")
    yield X, token


@contextmanager
def imitation() -> Iterator[tuple[str, str]]:
    """Yield the same for a local imitation, which is busy and breaks off every few seconds."""
    from xdk_testing import XFilteredStream  # needed for the imitation only

    over = threading.Event()

    def be_busy() -> None:
        for number in itertools.count(1):
            if over.wait(0.1):
                return
            api.publish({"data": {"id": str(10**18 + number), "text": f"A cat of {number} years."}})
            if number % 50 == 0:
                api.disconnect() if number % 100 else api.drop()

    with XFilteredStream(heartbeat=1.0, rate_limit=10_000) as api:
        thread = threading.Thread(target=be_busy, daemon=True)
        thread.start()
        yield api.base_url, api.bearer_token
        over.set()
        thread.join()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Relay X's filtered stream into a durable stream.")
    parser.add_argument("target", help="URL of the durable stream; it is made where it is missing")
    parser.add_argument(
        "--rule", action="append", default=[], help="add this rule; may be given several times"
    )
    parser.add_argument(
        "--backfill", action="store_true", help="ask for what was missed, if your plan has it"
    )
    parser.add_argument(
        "--imitation", action="store_true", help="read a local imitation of X, without an account"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
