"""Each store against the model of streams, and again where it forgets everything that it may forget."""
# ruff: noqa: ARG005 - stores in memory have no folder

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from store_model import StoreMachine, steps

from durable_streams.stores.backup import back_up
from durable_streams.stores.commit_log import LogLimits
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


class LogMachine(StoreMachine):
    """Every commit that can goes to the log, and hardly anything of it is sorted."""

    durable = True
    limits = LogLimits(streams=0, quiet=1e9)

    @classmethod
    def store_type(cls, folder, clock):  # noqa: ANN001, ANN206
        return SqliteStore(folder, max_streams=2, clock=clock, log=cls.limits)


class SortedLogMachine(LogMachine):
    """The log is sorted all the time, stream by stream."""

    limits = LogLimits(streams=0, quiet=0.0, step_records=1)


class KilledLogMachine(SortedLogMachine):
    """A store goes on with what another one left at some step of its sorting, in the middle of everything."""

    def stop(self) -> None:
        self.run(self.store.check())  # a touch, which nobody waits for, is stored before it
        left = Path(tempfile.mkdtemp(prefix="store-model-"))
        back_up(self.folder, left, lambda *_: None)
        super().stop()
        shutil.rmtree(self.folder)
        self.folder = left


class KilledWholeLogMachine(KilledLogMachine):
    """Nothing was sorted when the store ended."""

    limits = LogLimits(streams=0, quiet=1e9)


TestMemory = steps(MemoryMachine, 60)
TestForgetfulMemory = steps(ForgetfulMemoryMachine, 40)
TestSqlite = steps(SqliteMachine, 25)
TestForgetfulSqlite = steps(ForgetfulSqliteMachine, 25)
TestLog = steps(LogMachine, 6)
TestSortedLog = steps(SortedLogMachine, 6)
TestKilledLog = steps(KilledLogMachine, 8)
TestKilledWholeLog = steps(KilledWholeLogMachine, 5)
