"""The contract that every store must pass, as a pytest class to subclass.

In a test module of your own::

    from durable_streams.testing.contract import StoreContract

    class TestMyStore(StoreContract):
        durable = True

        def make_store(self, folder, clock):
            return MyStore(folder, clock=clock)

pytest collects every test of the class. ``make_store`` returns a store that is not open yet and keeps its data in
``folder`` (an empty one for each test; the same one again after a restart); ``clock`` is a callable that tells the
seconds since 1970 and stands still unless a test moves it. A store that is not durable leaves ``durable`` False, one
that has its streams for itself leaves ``shares`` False (where it is True, stores that are open on one folder at the
same time serve the same streams), one that cannot be given a clock sets ``controls_time`` to False: the tests that
need it are skipped. ``failing_commits`` may be overridden by a store that can be made to fail. No pytest plugin is
needed: each test runs its own event loop.
"""

from __future__ import annotations

from durable_streams.testing.contract.durability import DurabilityContract
from durable_streams.testing.contract.expiry import ExpiryContract
from durable_streams.testing.contract.forks import ForkContract
from durable_streams.testing.contract.gateways import GatewayContract
from durable_streams.testing.contract.harness import Clock, Harness, StoreFactory
from durable_streams.testing.contract.producers import ProducerContract
from durable_streams.testing.contract.reads import ReadContract
from durable_streams.testing.contract.writes import WriteContract

__all__ = ["Clock", "Harness", "StoreContract", "StoreFactory"]


class StoreContract(
    WriteContract,
    ProducerContract,
    ReadContract,
    ForkContract,
    ExpiryContract,
    DurabilityContract,
    GatewayContract,
):
    """Everything that ``stores.base.Store`` promises. Subclass it and implement ``make_store``."""
