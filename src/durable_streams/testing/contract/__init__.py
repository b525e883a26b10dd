"""The tests that every store passes, as a pytest class to subclass.

In a test module::

    from durable_streams.testing.contract import StoreContract

    class TestMyStore(StoreContract):
        durable = True

        def make_store(self, folder, clock):
            return MyStore(folder, clock=clock)

pytest collects every test of the class. A store that is not durable leaves ``durable`` False; one that reads a clock of
its own sets ``controls_time`` to False: tests that need either are skipped. A store that can be made to fail overrides
``failing_commits``. No pytest plugin is needed: each test runs an event loop of its own.

docs/write-a-store.md is the guide; `durable_streams.stores.base` states what a store promises.
"""

from __future__ import annotations

from durable_streams.testing.contract.durability import DurabilityContract
from durable_streams.testing.contract.expiry import ExpiryContract
from durable_streams.testing.contract.forks import ForkContract
from durable_streams.testing.contract.harness import Clock, Harness, StoreFactory
from durable_streams.testing.contract.listing import ListingContract
from durable_streams.testing.contract.producers import ProducerContract
from durable_streams.testing.contract.reads import ReadContract
from durable_streams.testing.contract.retention import RetentionContract
from durable_streams.testing.contract.subscriptions import SubscriptionContract
from durable_streams.testing.contract.writes import WriteContract

__all__ = ["Clock", "Harness", "StoreContract", "StoreFactory"]


class StoreContract(
    WriteContract,
    ProducerContract,
    ReadContract,
    ForkContract,
    ExpiryContract,
    RetentionContract,
    DurabilityContract,
    SubscriptionContract,
    ListingContract,
):
    """Everything that `durable_streams.stores.base.Store` promises. Subclass it and implement ``make_store``."""
