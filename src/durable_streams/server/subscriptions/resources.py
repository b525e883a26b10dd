"""What lives under ``__ds/subscriptions`` and ``__ds/jwks.json`` (protocol section 8)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from durable_streams.protocol import lease_tokens
from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.grants import EVERYTHING, Grant, Operation
from durable_streams.protocol.headers import RESERVED
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import StreamState
from durable_streams.protocol.subscription import (
    Ack,
    Link,
    Refusal,
    Subscription,
    configure,
    new_subscription,
    paths,
)
from durable_streams.server import parse
from durable_streams.server.config import ServerConfig
from durable_streams.server.control import (
    Control,
    invalid,
    json_body,
    json_response,
    method_not_allowed,
)
from durable_streams.server.http import BASE_HEADERS, STREAM_ROOT, ServerRequest, ServerResponse
from durable_streams.server.subscriptions import grants, keys, lag
from durable_streams.server.subscriptions.engine import Admit, Engine, missing, new_wake_id
from durable_streams.server.subscriptions.keys import JWKS_SECONDS, Signer
from durable_streams.stores.base import Store
from durable_streams.stores.subscriptions import SubscriptionStore, kept_by

if TYPE_CHECKING:  # with the HTTP client, which a server without webhooks does not import
    from durable_streams.server.subscriptions.webhooks import Webhooks

__all__ = ["Subscriptions"]

_ROOT = f"{STREAM_ROOT}{RESERVED}"
_TOKEN_KEY = "token-key"  # noqa: S105 - its name
_ALL_LINKS = 1000
"""Up to this many links all of them are sent to workers, beyond it those with something pending."""
_LONGEST_NAME = 256
_INCARNATION_BYTES = 9
_CHECKED_AT_ONCE = 100  # subscriptions of a list, before other requests have their turn

Find = Callable[[str], Awaitable[Subscription]]


class _Streams(msgspec.Struct):
    streams: list[str]


class _Claim(msgspec.Struct):
    worker: str


class _Report(msgspec.Struct):
    """What a worker says of its wake. ``wake_id`` and ``generation`` are checked by the machine."""

    wake_id: str | None = None
    generation: int | None = None
    acks: list[Ack] | None = None
    done: bool | None = None


class Subscriptions:
    """The subscriptions of a server, with their addresses.

    Attributes:
        engine: Performs their steps.
        own_url: The URL that the server listens at, where only this machine reaches it.

    Args:
        store: The store, which keeps subscriptions.
        config: The settings of the server.
        guarded: Whether requests are allowed what their grants say, and nothing else.
        clock: Returns the seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        config: ServerConfig,
        *,
        guarded: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._clock = clock
        self.own_url: str | None = None
        self._public = config.public_url.rstrip("/") if config.public_url else None
        self._allow_localhost = config.webhook_allow_http_localhost
        self._hosts = config.webhook_hosts or ()
        self._guarded = guarded
        self._hides = config.hide_forbidden
        self.engine = Engine(store, clock, regular=guarded)
        self.engine.deliver = self._deliver
        self._forget()

    def _forget(self) -> None:
        self._key = b""
        self._signer = Signer(self._kept, self._clock)
        self._loaded: Webhooks | None = None

    def _webhooks(self) -> Webhooks:
        if self._loaded is None:
            from durable_streams.server.subscriptions.urls import WebhookRules  # noqa: PLC0415 - see above
            from durable_streams.server.subscriptions.webhooks import Webhooks  # noqa: PLC0415 - see above

            rules = WebhookRules(allow_localhost=self._allow_localhost, allowed_hosts=self._hosts)
            self._loaded = Webhooks(self.engine, self._signer, rules, self._delivery)
        return self._loaded

    async def _deliver(self, name: str) -> None:
        await self._webhooks().deliver(name)

    def _kept(self) -> SubscriptionStore:
        return kept_by(self._store)

    async def start(self) -> None:
        """Load them; what was under way continues. Raises StoreError."""
        self._forget()
        await self.engine.start()
        if self.engine.active:
            await self.token_key()

    async def stop(self) -> None:
        """End what runs in the background."""
        await self.engine.stop()
        if self._loaded is not None:
            await self._loaded.stop()

    def serve_on(self, control: Control) -> None:
        """Add the addresses to those of the server."""
        methods = dict.fromkeys(("GET", "PUT", "POST", "DELETE"), self._answer)
        control.add("subscriptions", methods)
        control.add("jwks.json", {"GET": self._jwks})

    # -- addresses

    async def _answer(self, request: ServerRequest, rest: str) -> ServerResponse:
        name, _, action = rest.partition("/")
        if not name:
            return await self._list(request)
        if len(name) > _LONGEST_NAME:
            raise invalid(f"an id of a subscription has at most {_LONGEST_NAME} characters")
        try:
            return await self._act(request, name, action)
        except Refusal as refusal:
            error = {"code": refusal.code, "message": refusal.message, **refusal.details}
            return json_response(refusal.status, {"error": error})

    async def _act(self, request: ServerRequest, name: str, action: str) -> ServerResponse:
        method = "GET" if request.method == "HEAD" else request.method
        if action.startswith("streams/") and action != "streams/":
            _only(method, "DELETE")
            admit = self._admission(request, grants.MANAGE)
            await self.engine.remove_stream(name, action[len("streams/") :].strip("/"), admit)
            return _no_content()
        if not action:
            return await {"GET": self._read, "PUT": self._create, "DELETE": self._delete}.get(
                method, _no_method
            )(request, name)
        act = {
            "streams": self._add_streams,
            "callback": self._callback,
            "claim": self._claim,
            "ack": self._ack,
            "release": self._release,
        }.get(action)
        if act is None:
            raise Rejection(
                404, "NOT_FOUND", f"there is nothing under {RESERVED}/subscriptions/…/{action[:80]}"
            )
        _only(method, "POST")
        return await act(request, name)

    async def _list(self, request: ServerRequest) -> ServerResponse:
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed("GET, HEAD, OPTIONS")
        path = parse.query(request.query).get("stream")
        path = None if path is None else parse.stream_path(path)
        grant, seen = _grant(request), []
        for number, one in enumerate(self.engine.all() if path is None else self.engine.linked_to(path)):
            if grants.is_visible(grant, one):
                seen.append(one)
            if not number % _CHECKED_AT_ONCE:
                await asyncio.sleep(0)
        state = None if path is None else await self._store.get(path)
        shown = [_in_list(one, path, state) for one in sorted(seen, key=lambda one: one.id)]
        return json_response(200, {"subscriptions": shown})

    def _admission(self, request: ServerRequest, operations: Iterable[Operation]) -> Admit:
        """Return what raises if the caller of a request may not do this with a subscription."""
        grant = _grant(request)

        def admit(subscription: Subscription) -> None:
            try:
                grants.check(grant, operations, subscription)
            except Rejection:
                if self._hides:
                    raise missing(subscription.id) from None
                raise

        return admit

    async def _create(self, request: ServerRequest, name: str) -> ServerResponse:
        body = await json_body(request, Any)
        try:
            config = configure(body)
        except ValueError as error:
            raise invalid(str(error)) from None
        grants.check_config(_grant(request), config)
        if config.url is not None:
            await self._check_webhook(config.url)
        elif config.wake_stream is not None:
            await self._check_wake_stream(config.wake_stream)
        incarnation = secrets.token_urlsafe(_INCARNATION_BYTES)
        made = new_subscription(name, config, self._clock(), incarnation)
        subscription, new = await self.engine.create(made)
        if not new:
            self._admission(request, grants.SEE)(subscription)
        return json_response(201 if new else 200, await self._shown(subscription))

    async def _check_webhook(self, url: str) -> None:
        await self._webhooks().rules.check(url)
        if not keys.is_available():
            raise invalid(keys.MISSING)
        self._base_url()

    async def _check_wake_stream(self, path: str) -> None:
        state = await self._store.get(path)
        if state is None or state.deleted or state.closed or not state.is_json:
            raise invalid(f"wake_stream {path[:80]!r} is no open stream of application/json: create it first")

    async def _read(self, request: ServerRequest, name: str) -> ServerResponse:
        found = await self.engine.find(name)
        self._admission(request, grants.SEE)(found)
        shown = await self._shown(found)
        if parse.query(request.query).get("lag") == "true":
            shown |= await self._lag(found)
        return json_response(200, shown)

    async def _lag(self, subscription: Subscription) -> dict[str, Any]:
        """Return the streams of a subscription with how far behind it is."""
        states = await self.engine.states(subscription.links)
        streams = [
            {**_link(path, link), "lag_bytes": lag.behind(link, states.get(path))}
            for path, link in sorted(subscription.links.items())
        ]
        return {"streams": streams, "lag_bytes": lag.total(subscription, states)}

    async def _delete(self, request: ServerRequest, name: str) -> ServerResponse:
        try:
            await self.engine.remove(name, self._admission(request, grants.MANAGE))
        except Rejection as refusal:
            if refusal.status != 404:
                raise
            # One that is hidden from the caller is answered like one that does not exist.
        return _no_content()

    async def _add_streams(self, request: ServerRequest, name: str) -> ServerResponse:
        asked = await json_body(request, _Streams)
        try:
            named = paths(asked.streams)
        except ValueError as error:
            raise invalid(str(error)) from None
        grants.check_streams(_grant(request), grants.SEE, None, named)
        await self.engine.add_streams(name, named, self._admission(request, grants.SEE))
        return _no_content()

    async def _jwks(self, request: ServerRequest, rest: str) -> ServerResponse:  # noqa: ARG002 - one signature for all
        if rest:
            raise Rejection(404, "NOT_FOUND", f"there is nothing under {RESERVED}/jwks.json")
        if not keys.is_available():
            raise Rejection(404, "NOT_FOUND", "this server has no keys: it sends no webhooks")
        response = json_response(
            200, await self._signer.jwks(), [("cache-control", f"public, max-age={JWKS_SECONDS}")]
        )
        response.headers = [
            (key, "application/jwk-set+json" if key == "content-type" else value)
            for key, value in response.headers
        ]
        return response

    # -- workers

    async def _claim(self, request: ServerRequest, name: str) -> ServerResponse:
        asked = await json_body(request, _Claim)
        if not asked.worker or len(asked.worker) > _LONGEST_NAME:
            raise invalid(f"worker is a name of 1 to {_LONGEST_NAME} characters")
        admit = self._admission(request, grants.SEE)
        found = await self.engine.find(name)
        admit(found)
        _check_pull(found)
        seen: dict[str, int] = {}

        def decide(subscription: Subscription, tails: Mapping[str, int]) -> Subscription:
            admit(subscription)
            seen.clear()
            seen.update(tails)
            now = self._clock()
            return subscription.woken(tails, new_wake_id(), now).claimed(asked.worker, now)

        claimed = await self.engine.change(name, decide, everything=True, fresh=True)
        answer = {
            "wake_id": claimed.wake_id,
            "generation": claimed.generation,
            "token": self._token(claimed, await self.token_key()),
            "streams": _streams(claimed, seen),
            "lease_ttl_ms": claimed.config.lease_ttl_ms,
        }
        return json_response(200, answer)

    async def _callback(self, request: ServerRequest, name: str) -> ServerResponse:
        return await self._report(request, name, self.engine.find)

    async def _ack(self, request: ServerRequest, name: str) -> ServerResponse:
        return await self._report(request, name, self._require_pull)

    async def _report(self, request: ServerRequest, name: str, find: Find) -> ServerResponse:
        check = await self._checked(request, name, find)
        report = await json_body(request, _Report)
        acks, done = report.acks or [], report.done is True

        def decide(subscription: Subscription, tails: Mapping[str, int]) -> Subscription:
            generation = check(subscription)
            subscription.check_fence(report.wake_id, report.generation, generation)
            return subscription.acknowledged(acks, tails, self._clock(), done=done)

        named = [(ack.stream if ack.stream is not None else ack.path or "").strip("/") for ack in acks]
        after = await self.engine.change(name, decide, filter(None, named), fresh=True)
        next_wake = done and not after.idle
        return json_response(200, {"ok": True, "next_wake": next_wake})

    async def _release(self, request: ServerRequest, name: str) -> ServerResponse:
        check = await self._checked(request, name, self._require_pull)
        report = await json_body(request, _Report)

        def decide(subscription: Subscription, _: Mapping[str, int]) -> Subscription:
            subscription.check_fence(report.wake_id, report.generation, check(subscription))
            return subscription.released()

        await self.engine.change(name, decide, fresh=True)
        return _no_content()

    async def _require_pull(self, name: str) -> Subscription:
        found = await self.engine.find(name)
        _check_pull(found)
        return found

    async def _checked(self, request: ServerRequest, name: str, find: Find) -> Callable[[Subscription], int]:
        """Check the token of a request; return what checks it again at the step, and returns its generation.

        What is wrong with the subscription comes before what is wrong with the token (section 7). Where callers need
        credentials that would tell everybody which ids there are, so that the token comes first there.
        """
        found = None if self._guarded else await find(name)
        scheme, _, token = (request.header("authorization") or "").partition(" ")
        if scheme.lower() != "bearer":
            raise lease_tokens.invalid()
        key = await self.token_key()
        claims = lease_tokens.verify(key, token.strip(), _subject(name), self._clock())

        def check(subscription: Subscription) -> int:
            if claims.inc != subscription.incarnation:
                raise lease_tokens.invalid()
            return claims.gen

        check(found or await find(name))
        return check

    async def token_key(self) -> bytes:
        """Return a secret of the server, the same one for all that share its store."""
        if not self._key:
            made = secrets.token_bytes(lease_tokens.KEY_BYTES)
            self._key = await self._kept().secret(_TOKEN_KEY, made) or made
        return self._key

    @staticmethod
    def _token(subscription: Subscription, key: bytes) -> str:
        claims = lease_tokens.Claims(
            sub=_subject(subscription.id),
            inc=subscription.incarnation,
            gen=subscription.generation,
            exp=int(subscription.woken_at) + lease_tokens.TOKEN_SECONDS,
            jti=subscription.wake_id or "",
        )
        return lease_tokens.issue(key, claims)

    # -- what is shown and sent

    def _base_url(self) -> str:
        base = self._public or self.own_url
        if base is None:
            raise invalid(
                "webhooks need the address of this server as workers see it: start it with --public-url"
            )
        return base

    async def _shown(self, subscription: Subscription) -> dict[str, Any]:
        config = subscription.config
        shown: dict[str, Any] = {
            "id": subscription.id,
            "subscription_id": subscription.id,
            "type": config.type,
            "pattern": config.pattern,
            "streams": [_link(path, link) for path, link in sorted(subscription.links.items())],
            "wake_stream": config.wake_stream,
            "lease_ttl_ms": config.lease_ttl_ms,
            "created_at": _moment(subscription.created_at),
            "status": subscription.status,
            "description": config.description,
        }
        if config.url is not None:
            signing = {
                "alg": "ed25519",
                "kid": await self._signer.kid(),
                "jwks_url": f"{self._base_url()}{_ROOT}/jwks.json",
            }
            shown["webhook"] = {"url": config.url, "signing": signing}
        return {name: value for name, value in shown.items() if value is not None}

    async def _delivery(self, subscription: Subscription) -> bytes:
        """Return the body of a delivery."""
        name = quote(subscription.id, safe="")
        body = {
            "subscription_id": subscription.id,
            "wake_id": subscription.wake_id,
            "generation": subscription.generation,
            "streams": _streams(subscription, subscription.snapshot),
            "callback_url": f"{self._base_url()}{_ROOT}/subscriptions/{name}/callback",
            "callback_token": self._token(subscription, await self.token_key()),
        }
        return msgspec.json.encode(body)


def _streams(subscription: Subscription, tails: Mapping[str, int]) -> list[dict[str, object]]:
    """Return what a worker gets of the links: all, or of very many those with something pending."""
    links = subscription.links
    pending = set(subscription.pending(tails))
    shown = sorted(links if len(links) <= _ALL_LINKS else pending)
    return [
        {
            "path": path,
            "link_type": links[path].type,
            "acked_offset": links[path].offset,
            "tail_offset": format_offset(max(tails.get(path, 0), links[path].acked, 0)),
            "has_pending": path in pending,
        }
        for path in shown
    ]


def _grant(request: ServerRequest) -> Grant:
    return EVERYTHING if request.grant is None else request.grant


def _link(path: str, link: Link) -> dict[str, object]:
    return {"path": path, "link_type": link.type, "acked_offset": link.offset}


def _in_list(subscription: Subscription, path: str | None, state: StreamState | None) -> dict[str, object]:
    """Return what the list shows: of those of one stream also how far behind they are."""
    if path is None:
        return {"id": subscription.id}
    link = subscription.links[path]
    return {"id": subscription.id, "acked_offset": link.offset, "lag_bytes": lag.behind(link, state)}


def _check_pull(subscription: Subscription) -> None:
    if subscription.is_webhook:
        raise invalid("this subscription is a webhook: only those of pull-wake are claimed")


def _subject(name: str) -> str:
    return f"subscription:{name}"


def _moment(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _only(method: str, allowed: str) -> None:
    if method != allowed:
        raise method_not_allowed(f"{allowed}, OPTIONS")


async def _no_method(request: ServerRequest, name: str) -> ServerResponse:  # noqa: ARG001 - one signature for all
    raise method_not_allowed("GET, HEAD, PUT, DELETE, OPTIONS")


def _no_content() -> ServerResponse:
    return ServerResponse(204, list(BASE_HEADERS))
