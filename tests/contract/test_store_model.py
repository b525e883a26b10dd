"""Each store against the model of streams, and again where it forgets everything that it may forget."""
# ruff: noqa: ARG005 - stores in memory have no folder

from __future__ import annotations

from store_model import StoreMachine, steps

from durable_streams.stores.memory import MemoryStore
from durable_streams.stores.sqlite import SqliteStore


class MemoryMachine(StoreMachine):
    store_type = staticmethod(lambda folder, clock: MemoryStore(clock=clock))


class ForgetfulMemoryMachine(StoreMachine):
    store_type = staticmethod(lambda folder, clock: MemoryStore(max_streams=2, clock=clock))


class SqliteMachine(StoreMachine):
    durable = True
    store_type = staticmethod(lambda folder, clock: SqliteStore(folder, clock=clock))


class ForgetfulSqliteMachine(StoreMachine):
    durable = True
    store_type = staticmethod(lambda folder, clock: SqliteStore(folder, max_streams=2, clock=clock))


TestMemory = steps(MemoryMachine, 60)
TestForgetfulMemory = steps(ForgetfulMemoryMachine, 40)
TestSqlite = steps(SqliteMachine, 25)
TestForgetfulSqlite = steps(ForgetfulSqliteMachine, 25)
