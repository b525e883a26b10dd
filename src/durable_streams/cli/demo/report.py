"""What the demo found: every record counted, and the table that says so."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Account", "Outage", "Report", "account"]


@dataclass(frozen=True)
class Account:
    """What one party has, against what was sent; ``duplicated`` counts whatever should not be there."""

    name: str
    records: int
    lost: int
    duplicated: int
    sha256: str


def account(name: str, path: Path, sent: Sequence[bytes]) -> Account:
    """Count a file of lines against the records sent.

    Args:
        name: What the file is called in the report.
        path: The file; one that does not exist counts as empty.
        sent: The records, each without its line's end.

    Returns:
        What is there, missing and repeated.
    """
    content = path.read_bytes() if path.exists() else b""
    lines = content.split(b"\n")[:-1]
    expected, found = Counter(sent), Counter(lines)
    return Account(
        name=name,
        records=len(lines),
        lost=(expected - found).total(),
        duplicated=(found - expected).total(),
        sha256=hashlib.sha256(content).hexdigest(),
    )


@dataclass
class Outage:
    """One SIGKILL of the server. Seconds from it until the server was ready, and until data flowed again."""

    at_record: int
    ready: float = 0.0
    flowing: float | None = None


@dataclass
class Report:
    """The whole run; ``seconds`` is how long the writing took, outages included."""

    sent: int
    sha256: str
    accounts: list[Account] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    reader_kills: int = 0
    requests: int = 0
    repeated: int = 0
    seconds: float = 0.0

    @property
    def lost(self) -> int:
        """Records missing anywhere."""
        return max(party.lost for party in self.accounts)

    @property
    def duplicated(self) -> int:
        """Records too many anywhere."""
        return max(party.duplicated for party in self.accounts)

    @property
    def equal(self) -> bool:
        """Whether everybody has the input, byte for byte and in order."""
        return all(party.sha256 == self.sha256 for party in self.accounts)

    @property
    def good(self) -> bool:
        """Whether nothing was lost, nothing came twice, and all is in order."""
        return not self.lost and not self.duplicated and self.equal

    @property
    def working_seconds(self) -> float:
        """The time without the outages, in which appends could be acknowledged."""
        down = sum(outage.flowing or outage.ready for outage in self.outages)
        return max(self.seconds - down, 0.001)

    def fields(self) -> dict[str, Any]:
        """Return everything for machines."""
        return asdict(self) | {
            "lost": self.lost,
            "duplicated": self.duplicated,
            "equal": self.equal,
            "appends_per_second": round(self.requests / self.working_seconds, 1),
            "records_per_second": round(self.sent / self.working_seconds, 1),
        }

    def show(self, console: Console) -> None:
        """Print the tables.

        Args:
            console: Where they go.
        """
        console.print(self._counts())
        console.print(self._times())
        stored = self.accounts[0].sha256
        console.print(
            f"SHA-256 input  {self.sha256}\n        output {stored}", highlight=False, soft_wrap=True
        )
        verdict = "[bold green]equal: nothing lost, nothing twice, all in order[/]"
        console.print(
            verdict if self.good else "[bold red]NOT equal: this must not happen; please report it[/]"
        )

    def _counts(self) -> Table:
        table = Table(title="Every record, counted", title_justify="left")
        table.add_column("")
        for name in ("records", "lost", "duplicated"):
            table.add_column(name, justify="right")
        table.add_column("SHA-256")
        table.add_row("sent", f"{self.sent:,}", "", "", self.sha256[:12])
        for party in self.accounts:
            style = None if party.sha256 == self.sha256 else "bold red"
            numbers = (f"{number:,}" for number in (party.records, party.lost, party.duplicated))
            table.add_row(party.name, *numbers, party.sha256[:12], style=style)
        return table

    def rows(self) -> list[tuple[str, str]]:
        """Return what the run went through."""
        flowing = [outage.flowing for outage in self.outages if outage.flowing is not None]
        rate = f"{self.requests / self.working_seconds:,.0f}"
        return [
            ("server killed (SIGKILL), started again", f"{len(self.outages)} times"),
            ("SSE reader killed (SIGKILL), resumed from its checkpoint", f"{self.reader_kills} times"),
            ("records in repeated appends, not stored again", f"{self.repeated:,}"),
            ("time to recover: server ready", _spread([outage.ready for outage in self.outages])),
            ("time to recover: data flows again", _spread(flowing)),
            ("acknowledged appends per second (outages left out)", rate),
            ("records per second", f"{self.sent / self.working_seconds:,.0f}"),
        ]

    def _times(self) -> Table:
        table = Table(title="What it went through", title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for row in self.rows():
            table.add_row(*row)
        return table


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    return f"{min(seconds):.2f} to {max(seconds):.2f} s"
