"""Performs the machine of protocol.subscription: one serialised step after the other for each subscription.

Invariants:
* a step is committed before its answer goes out, and before anything else sees it; one that is refused, or not stored,
  changes nothing;
* a step that leaves a subscription idle looks at everything that was appended since it was woken, in the same commit:
  what is appended during a step is looked at after it, and after a start everything is;
* an append waits for none of it, and costs one look into a dictionary.

``news`` of a subscription are the paths that may have data past their cursor. Other servers of a shared store know
their own only, so that all paths are looked at there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

from msgspec.structs import replace

from durable_streams.protocol import rules
from durable_streams.protocol.commands import Append, Rejection
from durable_streams.protocol.state import StreamState
from durable_streams.protocol.subscription import Link, Subscription
from durable_streams.server.subscriptions.routes import Routes
from durable_streams.server.subscriptions.timers import DueTimes
from durable_streams.stores.base import Store, StoreError, StoreUnavailableError
from durable_streams.stores.subscriptions import Kept, RevisionError, SubscriptionStore, kept_by

__all__ = ["Admit", "Deliver", "Engine", "missing", "new_wake_id"]

MAX_LINKS = 10_000
"""The most streams of one subscription."""
MAX_SUBSCRIPTIONS = 10_000

_AT_ONCE = 256  # steps in the background
_STATES_AT_ONCE = 256
_PAGE = 1000  # paths of streams
_AGAIN = 1.0  # seconds after which a step that failed is tried again
_LEAD_INTERVAL = 1.0  # seconds
_LOOK_INTERVAL = (
    10.0  # seconds between looks at everything on a shared store: a server that took an append may be gone
)
_LOOKS_PER_SECOND = 200  # the most streams that these looks ask for, on average
_TRIES = 100
_WAKE_BYTES = 12

_log = logging.getLogger("durable_streams.server")

Decide = Callable[[Subscription, Mapping[str, int]], Subscription]
Deliver = Callable[[str], Awaitable[None]]
Admit = Callable[[Subscription], None]
"""Raises if the caller may not do what it asks for with the present subscription."""


def new_wake_id() -> str:
    """Return the id of a new wake."""
    return f"w_{secrets.token_hex(_WAKE_BYTES)}"


def missing(name: str) -> Rejection:
    """Return the 404 of a subscription that does not exist."""
    return Rejection(
        404, "SUBSCRIPTION_NOT_FOUND", f"there is no subscription {name[:80]!r}: create it first"
    )


class _Entry:
    """A subscription in memory. ``kept`` is None once it is removed; ``doubted``: the store may have another state."""

    __slots__ = ("cause", "doubted", "kept", "lock", "name", "news", "queued", "sent", "users")

    def __init__(self, name: str) -> None:
        self.name = name
        self.kept: Kept | None = None
        self.users = 0  # steps that wait or run
        self.lock = asyncio.Lock()
        self.news: dict[str, None] = {}
        self.cause: str | None = None
        self.queued = False
        self.doubted = False
        self.sent: str | None = None  # the wake that is being delivered


class Engine:
    """The subscriptions of one server.

    Attributes:
        active: Whether there is any, so that appends have to be noted.
        deliver: Delivers the wake of a webhook, by the id of its subscription.

    Args:
        store: The streams, in a store that keeps subscriptions too.
        clock: Returns the seconds since 1970.
        regular: Whether patterns leave out paths with empty segments.
    """

    def __init__(
        self, store: Store, clock: Callable[[], float] = time.time, *, regular: bool = False
    ) -> None:
        self._store = store
        self._kept: SubscriptionStore
        self.clock = clock
        self._regular = regular
        self.deliver: Deliver = _no_delivery
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = False
        self._begin()

    def _begin(self) -> None:
        # Everything belongs to one event loop.
        self.active = False
        self._entries: dict[str, _Entry] = {}
        self._routes = Routes(regular=self._regular)
        self._due = DueTimes(self.clock, self._on_due)
        self._queue: deque[_Entry] = deque()
        self._steps = 0  # tasks that work on the queue
        self._leads = False
        self._warned: set[str] = set()
        self._unannounced: dict[str, set[str]] = {}  # wake stream that failed to ids

    # -- start and end

    async def start(self) -> None:
        """Load everything; what was under way continues. May follow a `stop`. Raises StoreError."""
        self._begin()
        self._kept = kept_by(self._store)
        for kept in await self._kept.load():
            self._take(kept.subscription.id, kept)
        self._running = True
        self._leads = not self._kept.shared
        if self._kept.shared:
            self._spawn(self._follow())
            self._spawn(self._lead())
        else:
            self._spawn(self._look_at_all())

    async def stop(self) -> None:
        """End what runs in the background; it continues after the next start."""
        self._running = False
        self._due.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what happens to streams

    def appended(self, path: str) -> None:
        """Note that a stream was appended to, or created."""
        for name in self._routes.find(path):
            entry = self._entries[name]
            subscription = None if entry.kept is None else entry.kept.subscription
            if subscription is not None and not subscription.wants(path):
                continue
            entry.news[path] = None
            # While a wake is in flight an append causes nothing; its end looks at the news.
            if subscription is None or subscription.idle:
                entry.cause = path
                self._enqueue(entry)
        for name in self._unannounced.get(path, ()):
            self._enqueue(self._entries[name])

    def removed(self, path: str) -> None:
        """Note that a stream was deleted: its links go."""
        for name in self._routes.find(path):
            entry = self._entries[name]
            entry.news[path] = None
            self._enqueue(entry)

    # -- what clients ask for

    async def find(self, name: str) -> Subscription:
        """Return the present subscription of an id; raises the 404."""
        async with self._locked(name, fresh=True) as entry:
            if entry.kept is None:
                raise missing(name)
            return entry.kept.subscription

    def all(self) -> list[Subscription]:
        """Return all subscriptions that are known."""
        return [entry.kept.subscription for entry in self._entries.values() if entry.kept is not None]

    def linked_to(self, path: str) -> list[Subscription]:
        """Return the subscriptions that have a cursor on a stream."""
        entries = [self._entries[name] for name in self._routes.find(path)]
        found = [entry.kept.subscription for entry in entries if entry.kept is not None]
        return [one for one in found if path in one.links]

    async def create(self, made: Subscription) -> tuple[Subscription, bool]:
        """Create a subscription, or find the equal one; return it, and whether it is new.

        Raises:
            Rejection: 409, another one has the id; 400, it would have too many streams.
        """
        async with self._locked(made.id, fresh=True) as entry:
            for _ in range(_TRIES):
                if entry.doubted:
                    await self._reload(entry)
                if entry.kept is not None:
                    return _same(entry.kept.subscription, made), False
                if len(self._routes) >= MAX_SUBSCRIPTIONS:
                    raise _full()
                try:
                    return await self._created(entry, made), True
                except RevisionError:
                    entry.doubted = True
        raise _contended()

    async def _created(self, entry: _Entry, made: Subscription) -> Subscription:
        # From here on appends are noted: what comes while links are made is news.
        named = {path: Link(0, -1, explicit=True) for path in made.config.streams}
        self._routes.set(made.linked(named))
        self.active = True
        try:
            after = made.linked(await self._first_links(made))
            revision = await self._kept.save(after, None)
        except BaseException as error:
            self._drop(entry)
            if not isinstance(error, (Rejection, RevisionError)):
                self._doubt(entry)
            raise
        self._committed(entry, Kept(after, revision))
        return after

    async def remove(self, name: str, admit: Admit) -> None:
        """Delete a subscription, if ``admit`` allows it; there may be none."""
        async with self._locked(name, fresh=True) as entry:
            for _ in range(_TRIES):
                if entry.doubted:
                    await self._reload(entry)
                if entry.kept is None:
                    return
                admit(entry.kept.subscription)
                try:
                    await self._kept.remove(entry.kept)
                except RevisionError:
                    entry.doubted = True
                    continue
                except BaseException:
                    self._doubt(entry)
                    raise
                self._drop(entry)
                return
        raise _contended()

    async def add_streams(self, name: str, paths: Iterable[str], admit: Admit) -> None:
        """Link streams by their paths, at their present tails; raises the 404, or the 400 of too many."""
        links = await self._tails_as_links(paths, explicit=True)

        def decide(subscription: Subscription, _: Mapping[str, int]) -> Subscription:
            admit(subscription)
            return _bounded(subscription.linked(links))

        await self.change(name, decide, fresh=True)

    async def remove_stream(self, name: str, path: str, admit: Admit) -> None:
        """Remove the explicit link of a path; raises the 404 of the subscription."""

        def decide(subscription: Subscription, _: Mapping[str, int]) -> Subscription:
            admit(subscription)
            return subscription.unlinked(path)

        await self.change(name, decide, fresh=True)

    async def change(
        self,
        name: str,
        decide: Decide,
        paths: Iterable[str] = (),
        *,
        everything: bool = False,
        fresh: bool = False,
    ) -> Subscription:
        """Make one step: decide on the present state, and commit.

        A lease that is over ends before the decision, and what is pending after it begins the next wake.

        Args:
            name: The id of the subscription.
            decide: Takes the subscription and the tails of streams in bytes, and returns the next state.
            paths: The paths whose tails it needs, besides those that have news.
            everything: Whether it needs those of all linked paths.
            fresh: Whether it must not be refused because of a state that another server has changed since.

        Returns:
            The state that was committed.

        Raises:
            Rejection: There is no such subscription, or ``decide`` refuses.
            StoreError: The step was not stored.
        """
        async with self._locked(name, fresh=fresh) as entry:
            for _ in range(_TRIES):
                if entry.doubted:
                    await self._reload(entry)
                if entry.kept is None:
                    raise missing(name)
                try:
                    return await self._step(entry, entry.kept, decide, paths, everything=everything)
                except RevisionError:
                    entry.doubted = True
                except Rejection:
                    raise
                except BaseException:
                    self._doubt(entry)
                    raise
        raise _contended()

    def _doubt(self, entry: _Entry) -> None:
        """Find out soon what is stored: a step failed, or was broken off, and may have been stored all the same."""
        entry.doubted = True
        if self._running:
            asyncio.get_running_loop().call_later(_AGAIN, self._enqueue, entry)

    @contextlib.asynccontextmanager
    async def _locked(self, name: str, *, fresh: bool) -> AsyncIterator[_Entry]:
        """Hold the entry of an id, which exists at least until nothing holds it."""
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = _Entry(name)
            fresh = True
        entry.users += 1
        try:
            async with entry.lock:
                if entry.doubted or (fresh and self._kept.shared):
                    await self._reload(entry)
                yield entry
        finally:
            entry.users -= 1
            if entry.kept is None and not entry.users and not entry.doubted:
                self._entries.pop(name, None)

    # -- a step

    async def _step(
        self, entry: _Entry, before: Kept, decide: Decide, paths: Iterable[str], *, everything: bool
    ) -> Subscription:
        subscription, now = before.subscription, self.clock()
        news = dict.fromkeys((*entry.news, *paths))
        if everything or self._kept.shared:
            news.update(dict.fromkeys(subscription.links))
        looked_at, entry.news = entry.news, {}
        try:
            states = await self.states(news)
            met = subscription
            for path, state in states.items():
                if path in met.links or self._has_room(met):
                    met = met.met(path, state, glob=self._routes.matches(entry.name, path))
            tails = {path: state.tail for path, state in states.items() if state is not None}
            cause = entry.cause
            after = decide(met.expired(now), tails).woken(tails, new_wake_id(), now, cause)
            after = await self._announced(subscription, after, now)
            if after != subscription:
                revision = await self._kept.save(after, before)
                self._committed(entry, Kept(after, revision))
            elif not after.idle:
                self._schedule(entry, after)
        except BaseException:
            entry.news = {**looked_at, **entry.news}
            raise
        entry.news.update(dict.fromkeys(after.pending(tails)))
        return after

    async def states(self, paths: Iterable[str]) -> dict[str, StreamState | None]:
        """Return streams by their paths, None for those that do not exist."""
        wanted = list(paths)
        found: dict[str, StreamState | None] = {}
        for at in range(0, len(wanted), _STATES_AT_ONCE):
            page = wanted[at : at + _STATES_AT_ONCE]
            if len(page) == 1:
                found[page[0]] = await self._store.get(page[0])
            else:
                found.update(zip(page, await asyncio.gather(*map(self._store.get, page)), strict=True))
        return found

    def _has_room(self, subscription: Subscription) -> bool:
        if len(subscription.links) < MAX_LINKS:
            return True
        if subscription.id not in self._warned:
            self._warned.add(subscription.id)
            _log.warning("subscription %r has %d streams: others wake nobody", subscription.id, MAX_LINKS)
        return False

    async def _announced(self, before: Subscription, after: Subscription, now: float) -> Subscription:
        """Append an open wake to its wake stream before it is stored: a crash in between repeats it."""
        if after.idle or after.is_webhook or after.announced:
            return after
        if after.holder is not None and after.wake_id == before.wake_id:
            return after  # it was claimed without an announcement
        path = after.config.wake_stream or ""
        try:
            payload = rules.json_payload(after.announcement(now))
            appended = await self._store.append(path, Append("application/json", payload))
        except Rejection as refusal:
            _log.warning("subscription %r cannot announce a wake on %r: %s", after.id, path, refusal.message)
            return after  # it can be claimed all the same, and is announced once the stream is there
        self.appended(appended.state.path)
        return replace(after, announced=True)

    def _committed(self, entry: _Entry, kept: Kept) -> None:
        before, entry.kept, entry.doubted = entry.kept, kept, False
        if before is None or before.subscription.links is not kept.subscription.links:
            self._routes.set(kept.subscription)
        self._note_unannounced(kept.subscription)
        if not kept.subscription.idle:
            entry.cause = None
        self._schedule(entry, kept.subscription)
        if entry.news and kept.subscription.idle:
            self._enqueue(entry)

    def _note_unannounced(self, subscription: Subscription) -> None:
        path = subscription.config.wake_stream
        if path is None:
            return
        if subscription.idle or subscription.announced or subscription.holder is not None:
            waiting = self._unannounced.get(path)
            if waiting is not None:
                waiting.discard(subscription.id)
                if not waiting:
                    del self._unannounced[path]
        else:
            self._unannounced.setdefault(path, set()).add(subscription.id)

    def _schedule(self, entry: _Entry, subscription: Subscription) -> None:
        if self._running:
            self._due.set(entry.name, subscription.due)

    # -- links of a new subscription

    async def _first_links(self, made: Subscription) -> dict[str, Link]:
        """Return the links of a new subscription: what exists is linked at its tail, so that nothing old is news."""
        links: dict[str, Link] = {}
        if made.config.pattern is not None:
            matching = await self._matching(made.id)
            links = await self._tails_as_links(filter(made.wants, matching), glob=True)
        merged = made.linked(links).linked(await self._tails_as_links(made.config.streams, explicit=True))
        return _bounded(merged).links

    async def _matching(self, name: str) -> list[str]:
        found: list[str] = []
        after = ""
        while page := await self._kept.paths(after, _PAGE):
            after = page[-1]
            found += [path for path in page if self._routes.matches(name, path)]
            if len(found) > MAX_LINKS:
                raise _too_many(len(found))
        return found

    async def _tails_as_links(
        self, paths: Iterable[str], *, explicit: bool = False, glob: bool = False
    ) -> dict[str, Link]:
        links = {}
        for path, state in (await self.states(dict.fromkeys(paths))).items():
            if state is not None and not state.deleted:
                links[path] = Link(state.id, state.tail, explicit=explicit, glob=glob)
            elif explicit:
                links[path] = Link(0, -1, explicit=True)
        return links

    # -- in the background

    def _enqueue(self, entry: _Entry) -> None:
        if entry.queued or not self._running:
            return
        entry.queued = True
        self._queue.append(entry)
        if self._steps < _AT_ONCE:
            self._steps += 1
            self._spawn(self._work())

    async def _work(self) -> None:
        try:
            while self._queue:
                entry = self._queue.popleft()
                entry.queued = False
                if entry.kept is not None or entry.doubted:
                    await self._look(entry)
        finally:
            self._steps -= 1

    async def _look(self, entry: _Entry) -> None:
        """Make a step in which only what happened is decided."""
        try:
            await self.change(entry.name, lambda subscription, _: subscription)
        except Rejection:
            pass  # it was removed
        except StoreError as error:
            # It is tried again, as every step that failed: `_doubt`.
            _log.warning("subscription %r waits for the store: %s", entry.name, error)
        except Exception:  # noqa: BLE001 - a failure of one must not end the others
            _log.exception("a step of subscription %r failed", entry.name)

    def _on_due(self, name: str) -> None:
        entry = self._entries.get(name)
        if entry is None or entry.kept is None or not self._leads:
            return
        subscription = entry.kept.subscription
        if subscription.next_attempt_at is None:
            self._enqueue(entry)
        elif entry.sent != subscription.wake_id:
            entry.sent = subscription.wake_id
            self._spawn(self._deliver(entry, subscription))

    async def _deliver(self, entry: _Entry, subscription: Subscription) -> None:
        try:
            await self.deliver(entry.name)
        except Rejection:
            pass  # it was removed
        except Exception as error:  # noqa: BLE001 - it is delivered again, whatever failed
            _log.warning("the wake of subscription %r waits: %s", entry.name, error)
            await asyncio.sleep(_AGAIN)
        finally:
            if entry.sent == subscription.wake_id:
                entry.sent = None
        if entry.kept is not None:
            self._schedule(entry, entry.kept.subscription)

    async def _look_at_all(self) -> None:
        """Find what was appended before the start, or on a server that is gone: nothing else knows of it."""
        entries = [entry for entry in self._entries.values() if entry.kept is not None]
        await self._find_matches(entries)
        for entry in entries:
            if entry.kept is not None:
                self._schedule(entry, entry.kept.subscription)
                entry.news.update(dict.fromkeys(entry.kept.subscription.links))
                self._enqueue(entry)

    async def _find_matches(self, entries: Iterable[_Entry]) -> None:
        """Make news of streams that match a pattern and are not linked: their first append may have been missed."""
        wanted = {
            entry.name: entry for entry in entries if entry.kept and entry.kept.subscription.config.pattern
        }
        after = ""
        while wanted:
            try:
                page = await self._kept.paths(after, _PAGE)
            except StoreError as error:
                _log.warning("subscriptions wait for the store: %s", error)
                await asyncio.sleep(_AGAIN)
                continue
            if not page:
                return
            after = page[-1]
            for path in page:
                for name in self._routes.find(path):
                    entry = wanted.get(name)
                    if entry is not None and entry.kept and path not in entry.kept.subscription.links:
                        entry.news[path] = None
            await asyncio.sleep(0)

    # -- other servers

    async def _follow(self) -> None:
        while True:
            try:
                changes = await self._kept.changed()
            except StoreError:
                await asyncio.sleep(_AGAIN)
                continue
            except Exception:  # noqa: BLE001 - one that cannot be read must not hide the others for good
                _log.exception("the subscriptions of other servers cannot be read")
                await asyncio.sleep(_AGAIN)
                continue
            fresh = []
            for name, kept in changes:
                known = self._entries.get(name)
                before = known.kept if known is not None else None
                if kept is None or before is None or kept.revision > before.revision:
                    entry = self._take(name, kept)
                    if kept is not None and before is None:
                        fresh.append(entry)
            if fresh:
                # Streams may have come here before this server knew of the subscription.
                await self._find_matches(fresh)
                for entry in fresh:
                    self._enqueue(entry)

    async def _lead(self) -> None:
        """Be the server that ends leases and delivers, while it is; look at everything then, and now and again."""
        look_at = 0.0
        while True:
            leads = await self._kept.leads()
            now = time.monotonic()
            if leads and (not self._leads or now >= look_at):
                links = sum([len(one.links) for one in self.all()])
                look_at = now + max(_LOOK_INTERVAL, links / _LOOKS_PER_SECOND)
                self._leads = True
                await self._look_at_all()
            self._leads = leads
            await asyncio.sleep(_LEAD_INTERVAL)

    # -- what is in memory

    def _take(self, name: str, kept: Kept | None) -> _Entry:
        entry = self._entries.get(name) or _Entry(name)
        if kept is None:
            self._drop(entry)
            return entry
        self._entries[name] = entry
        self.active = True
        self._committed(entry, kept)
        return entry

    def _drop(self, entry: _Entry) -> None:
        if entry.kept is not None:
            for waiting in self._unannounced.values():
                waiting.discard(entry.name)
        entry.kept, entry.doubted = None, False
        entry.news.clear()
        self._due.set(entry.name, None)
        self._routes.drop(entry.name)
        if not entry.users:
            self._entries.pop(entry.name, None)
        self.active = bool(len(self._routes))

    async def _reload(self, entry: _Entry) -> None:
        kept = await self._kept.find(entry.name)
        if kept is None:
            self._drop(entry)
            return
        self.active = True
        if entry.kept is None or entry.kept.revision != kept.revision:
            self._committed(entry, kept)
        entry.doubted = False


async def _no_delivery(name: str) -> None:
    raise StoreError(f"webhooks are not available here, which {name!r} needs")


def _same(present: Subscription, asked: Subscription) -> Subscription:
    if present.config.hash != asked.config.hash:
        raise Rejection(
            409,
            "SUBSCRIPTION_ALREADY_EXISTS",
            "a subscription with another configuration has this id: delete it first, or choose another id",
        )
    return present


def _bounded(subscription: Subscription) -> Subscription:
    if len(subscription.links) > MAX_LINKS:
        raise _too_many(len(subscription.links))
    return subscription


def _full() -> Rejection:
    return Rejection(
        400, "INVALID_REQUEST", f"this server has {MAX_SUBSCRIPTIONS} subscriptions, its most: delete one"
    )


def _contended() -> StoreError:
    return StoreUnavailableError("the subscription keeps changing: try again")


def _too_many(count: int) -> Rejection:
    return Rejection(
        400,
        "INVALID_REQUEST",
        f"a subscription has at most {MAX_LINKS} streams, this one would have {count}: use narrower patterns",
    )
