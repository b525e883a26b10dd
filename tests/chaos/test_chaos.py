"""Writers and readers, sync and async, through a network that fails at random: nothing lost, nothing twice.

Each seed is a scenario of its own. All writers and readers run at the same time; readers stop and start again
at random moments, and every position that any of them ever saw must lead to exactly the rest.
"""

from __future__ import annotations

from collections.abc import Callable

from chaos_roles import Appender, Producer, Reader
from chaos_scenario import NETWORK, Scenario

from durable_streams import DurableStream


def test_nothing_is_lost_and_nothing_comes_twice(scenario: Scenario, chaos_seed: int) -> None:
    chance, is_json = scenario.random, scenario.kind == "json"
    readers = {
        f"reader-{number}": Reader(scenario, f"reader-{number}") for number in range(chance.choice([2, 3]))
    }
    alone = not is_json or chance.random() < 0.5
    names = ["producer-0"] if alone else ["producer-0", "producer-1"]
    closes = alone and chance.random() < 0.5  # a stream that others still write to is closed after them
    producers = {name: Producer(scenario, name, closes=closes) for name in names}
    appender = Appender(scenario, "appender") if is_json and not closes and chance.random() < 0.7 else None
    writers: dict[str, Callable[[], None]] = {**producers, **({"appender": appender} if appender else {})}

    def write_and_close() -> None:
        scenario.run(writers)
        DurableStream(scenario.url, **NETWORK).close_stream()

    scenario.run({**readers, "writers": write_and_close})

    whole = scenario.content()
    for name, producer in producers.items():
        if is_json:
            assert [item for item in whole if item["by"] == name] == producer.records
        else:
            assert whole == b"".join(producer.records)
    if appender is not None:
        appender.check(scenario.content, doubled=scenario.duplicates)
    for reader in readers.values():
        assert reader.follower.have == whole
    scenario.check_marks(whole)
