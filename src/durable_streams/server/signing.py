"""Signed URLs: for browsers, whose ``EventSource`` sends no headers, and for anything that is given one stream only.

Invariants: a signature covers the operations, the path and the end, so that none of them can be changed; what is signed
stands for one of each, since none of them has a line break in it; it is compared in constant time; a URL allows no more
than the key that signed it, and nothing once that key is gone.

    https://example.com/v1/stream/jobs/1?ds-allow=read&ds-expires=1893456000&ds-key=9f86d081884c&ds-signature=…
"""

from __future__ import annotations

import hmac
import math
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.grants import Grant, Operation, operations_of
from durable_streams.server import parse
from durable_streams.server.access import unauthorized
from durable_streams.server.http import STREAM_ROOT
from durable_streams.server.keys import SigningKey, signing_key_id

__all__ = ["SIGNED", "grant_of_url", "sign_url", "signed_path"]

SIGNED = "ds-signature="
"""What the query of a signed URL contains."""

_ALLOW, _EXPIRES, _KEY, _SIGNATURE = "ds-allow", "ds-expires", "ds-key", "ds-signature"
_SECONDS = re.compile(r"[1-9][0-9]{0,11}")
_SIGNABLE = ("read", "append", "create", "delete", "trim")
_NAMES = frozenset(_SIGNABLE)
_VERSION = "durable-streams url 1"


def sign_url(
    url: str, secret: str, *, allow: Sequence[Operation] = ("read",), expires_in: float = 3600.0
) -> str:
    """Return the URL of a stream with a signature, which lets everybody who has it do some things for some time.

    Args:
        url: The whole URL of the stream; its query stays.
        secret: The secret of a signing key in the server's file of keys (``durable-streams key create --signing``).
        allow: What the URL is for: ``read``, ``append``, ``create``, ``delete``, ``trim``.
        expires_in: Seconds from now until it ends.

    Returns:
        The URL, with four parameters more.

    Raises:
        ValueError: The URL is not that of a stream, or the operations cannot be signed.
    """
    operations = operations_of(allow)
    for operation in operations:
        if operation not in _SIGNABLE:
            raise ValueError(f"a URL can be signed for {', '.join(_SIGNABLE)}, not for {operation}")
    if not 0 < expires_in < math.inf:
        raise ValueError(f"expires_in is a number of seconds above 0, not {expires_in}")
    expires = str(int(time.time() + expires_in))
    if not _SECONDS.fullmatch(expires):
        raise ValueError(f"expires_in is too long: {expires_in} seconds")
    parts = urlsplit(url)
    said = {_ALLOW: ",".join(operations), _EXPIRES: expires, _KEY: signing_key_id(secret)}
    signature = _signature(secret.encode(), said, signed_path(url))
    pairs = [
        pair for pair in parts.query.split("&") if pair and pair.partition("=")[0] not in {*said, _SIGNATURE}
    ]
    pairs += [f"{name}={quote(value, safe=',')}" for name, value in (said | {_SIGNATURE: signature}).items()]
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "&".join(pairs), ""))


def signed_path(url: str) -> str:
    """Return the path of a stream's URL below the root of the streams; raises ValueError."""
    _, root, path = urlsplit(url).path.partition(STREAM_ROOT)
    if not root or not path:
        raise ValueError(f"{url!r} is no URL of a stream: it has no path below {STREAM_ROOT}")
    try:
        return parse.stream_path(unquote(path))
    except Rejection as refusal:
        raise ValueError(f"{url!r} is no URL of a stream: {refusal.message}") from None


def grant_of_url(query: str, path: str, keys: Mapping[str, SigningKey], operation: Operation) -> Grant:
    """Return what a signed URL allows on its path; raises the 401 of one that is not valid."""
    values = parse.query(query)
    said = {name: values.get(name, "") for name in (_ALLOW, _EXPIRES, _KEY)}
    allowed = said[_ALLOW].split(",")
    signer = keys.get(said[_KEY])
    if (
        signer is None
        or not _SECONDS.fullmatch(said[_EXPIRES])
        or not _NAMES.issuperset(allowed)
        or not hmac.compare_digest(
            _signature(signer.secret, said, path).encode(), values.get(_SIGNATURE, "").encode()
        )
    ):
        raise unauthorized("the signature of this URL is not valid for this stream: get another URL")
    expires = float(said[_EXPIRES])
    if expires <= time.time():
        raise unauthorized("this signed URL has expired: get another one")
    if signer.grant.expires is not None:
        expires = min(expires, signer.grant.expires)
    is_allowed = operation in allowed and signer.grant.allows(operation, path)
    # Of the caller's rules only the one for this request is made: nothing looks at others.
    return Grant.on_path(path, [operation] if is_allowed else [], signer.grant.subject, expires)


def _signature(secret: bytes, said: Mapping[str, str], path: str) -> str:
    content = "\n".join([_VERSION, said[_KEY], said[_ALLOW], said[_EXPIRES], path])
    digest = hmac.digest(secret, content.encode(), "sha256")
    return urlsafe_b64encode(digest).rstrip(b"=").decode()
