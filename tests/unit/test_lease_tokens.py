from __future__ import annotations

import base64
import hmac
from hashlib import sha256

import msgspec
import pytest

from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.lease_tokens import Claims, issue, verify

KEY = b"k" * 32
CLAIMS = Claims("subscription:one", "first", 3, 1000, "w_1")


def refusal(token: str, *, key: bytes = KEY, subject: str = CLAIMS.sub, now: float = 0) -> str:
    with pytest.raises(Rejection) as refused:
        verify(key, token, subject, now)
    assert refused.value.status == 401
    return refused.value.code


def test_a_token_says_what_it_was_issued_for() -> None:
    assert verify(KEY, issue(KEY, CLAIMS), CLAIMS.sub, 999) == CLAIMS
    assert issue(KEY, CLAIMS) == issue(KEY, CLAIMS)


def test_a_token_is_for_one_subscription_and_server() -> None:
    token = issue(KEY, CLAIMS)
    assert refusal(token, subject="subscription:two") == "TOKEN_INVALID"
    assert refusal(token, key=b"x" * 32) == "TOKEN_INVALID"


def test_a_token_expires() -> None:
    assert refusal(issue(KEY, CLAIMS), now=1000) == "TOKEN_EXPIRED"


def test_no_changed_token_is_valid() -> None:
    token = issue(KEY, CLAIMS)
    for at in range(len(token)):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        assert refusal(changed) == "TOKEN_INVALID"


@pytest.mark.parametrize("token", ["", ".", "a.b", "é.é", "a" * 10_000, issue(KEY, CLAIMS).partition(".")[0]])
def test_what_is_no_token(token: str) -> None:
    assert refusal(token) == "TOKEN_INVALID"


def signed(said: str) -> str:
    """Return any text with a signature that is right, as another version of the server may have issued it."""
    return f"{said}.{text(hmac.digest(KEY, said.encode(), sha256))}"


def text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_what_is_signed_here_reads_like_an_issued_token() -> None:
    assert signed(text(msgspec.json.encode(CLAIMS))) == issue(KEY, CLAIMS)


@pytest.mark.parametrize(
    "said",
    [
        "a",  # no length that base64 has
        text(b"no JSON"),
        text(b'{"sub":"\xff"}'),  # no UTF-8
        text(b"[]"),
        text(b"{}"),
        text(msgspec.json.encode({"sub": CLAIMS.sub, "inc": "first", "gen": "3", "exp": 1000, "jti": "w_1"})),
    ],
)
def test_the_signature_is_right_but_it_says_nothing_that_is_known(said: str) -> None:
    assert refusal(signed(said)) == "TOKEN_INVALID"


def test_a_refusal_says_how_a_token_is_sent() -> None:
    with pytest.raises(Rejection, match="send it as Authorization: Bearer <token>") as refused:
        verify(KEY, "", CLAIMS.sub, 0)
    assert refused.value.headers == {"www-authenticate": "Bearer"}
    with pytest.raises(Rejection, match="the token expired: wait for the next wake, or claim again"):
        verify(KEY, issue(KEY, CLAIMS), CLAIMS.sub, 1000)
