"""JSON Web Tokens: those that are good, and every attack on them that is known."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedServer

from durable_streams.server import ServerConfig, ServerStartError, asgi_app, key_sets
from durable_streams.server.token_keys import key_in_file, key_set
from durable_streams.server.tokens import subject_of

SECRET = "a secret that is long enough for each of the algorithms: 64 bytes"
ED = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
}


def pem(key: Any) -> str:
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return str(public.decode())


def jwk(key: Any, **more: str) -> dict[str, str]:
    names = {"Ed25519PrivateKey": "EdDSA", "RSAPrivateKey": "RS256"}
    kind = next((name for part, name in names.items() if part in type(key).__name__), "ES256")
    made: dict[str, str] = jwt.get_algorithm_by_name(kind).to_jwk(key.public_key(), as_dict=True)
    return made | more


def token(key: Any = ED, algorithm: str = "EdDSA", *, headers: dict | None = None, **claims: Any) -> str:
    payload = {"exp": time.time() + 60, "ds": ["*:**"], "sub": "someone"} | claims
    payload = {name: value for name, value in payload.items() if value is not None}
    return jwt.encode(payload, key, algorithm, headers=headers)


def raw(head: bytes, payload: bytes, sign: Callable[[bytes], bytes] = ED.sign) -> str:
    """Return a token of parts that no library would write."""
    content = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (head, payload))
    return (content + b"." + base64.urlsafe_b64encode(sign(content)).rstrip(b"=")).decode()


@asynccontextmanager
async def asking(config: ServerConfig) -> AsyncIterator[Callable[..., Any]]:
    app = asgi_app(config)
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://server/v1/stream/") as client:

        async def status(given: str, path: str = "s", method: str = "PUT") -> tuple[int, str]:
            answer = await client.request(method, path, headers={"authorization": f"Bearer {given}"})
            said = answer.json()["error"]["message"] if answer.status_code >= 400 else ""
            assert "\n" not in said
            assert given not in said
            return answer.status_code, said

        yield status
        await app.shutdown()


def ask(config: ServerConfig, given: str, path: str = "s") -> tuple[int, str]:
    async def work() -> tuple[int, str]:
        async with asking(config) as status:
            answer: tuple[int, str] = await status(given, path)
            return answer

    return asyncio.run(work())


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return with_key(tmp_path, pem(ED))


def with_key(folder: Path, text: str, **settings: Any) -> ServerConfig:
    path = folder / "key"
    path.write_text(text)
    return ServerConfig(jwt_key=path, **settings)


@pytest.mark.parametrize(
    ("text", "key", "algorithms"),
    [
        (pem(ED), ED, ["EdDSA"]),
        (pem(RSA), RSA, ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
        *[(pem(key), key, [name]) for name, key in EC.items()],
        (SECRET, SECRET.encode(), ["HS256", "HS384", "HS512"]),
    ],
)
def test_each_kind_of_key(tmp_path: Path, text: str, key: Any, algorithms: list[str]) -> None:
    config = with_key(tmp_path, text)
    for algorithm in algorithms:
        assert ask(config, token(key, algorithm)) == (201, "")


def test_a_certificate_is_a_key(tmp_path: Path) -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(name, name, RSA.public_key(), 1, now, now + timedelta(days=1))
    made = builder.sign(RSA, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    assert ask(with_key(tmp_path, made.decode()), token(RSA, "RS256")) == (201, "")


def claims_twice() -> str:
    end = int(time.time()) + 60
    return raw(b'{"alg":"EdDSA"}', b'{"exp":%d,"ds":["read:x"],"ds":["*:**"]}' % end)


# What is sent, and a part of what it is answered.
ATTACKS: dict[str, tuple[Callable[[], str], str]] = {
    "no algorithm": (
        lambda: raw(b'{"alg":"none"}', b'{"exp":9999999999,"ds":["*:**"]}', lambda _: b""),
        "not of a key that is trusted",
    ),
    "None": (
        lambda: raw(b'{"alg":"None"}', b'{"exp":9999999999}', lambda _: b""),
        "not of a key that is trusted",
    ),
    "no signature": (lambda: token().rpartition(".")[0] + ".", "not of a key that is trusted"),
    "another key": (lambda: token(ed25519.Ed25519PrivateKey.generate()), "not of a key that is trusted"),
    "another kind of key": (lambda: token(RSA, "RS256"), "not of a key that is trusted"),
    "the public key as a secret": (lambda: hmac_with(pem(ED)), "not of a key that is trusted"),
    "expired": (lambda: token(exp=time.time() - 11), "has expired"),
    "no end": (lambda: token(exp=None), "lacks a claim"),
    "an end that is no number": (lambda: token(exp="soon"), "no well-formed"),
    "future": (lambda: token(nbf=time.time() + 60), "not valid yet"),
    "made in the future": (lambda: token(iat=time.time() + 60), "not valid yet"),
    "an audience that is not asked for": (lambda: token(aud="other"), "another audience"),
    "a changed payload": (lambda: changed(token()), "not of a key that is trusted"),
    "a claim that occurs twice": (claims_twice, "no well-formed"),
    "a header that occurs twice": (
        lambda: raw(b'{"alg":"EdDSA","alg":"none"}', b'{"exp":9999999999}'),
        "no well-formed",
    ),
    "something critical": (lambda: token(headers={"crit": ["exp"]}), "no well-formed"),
    "a payload that is no object": (lambda: raw(b'{"alg":"EdDSA"}', b"[]"), "no well-formed"),
    "no JSON": (lambda: raw(b"x", b"x"), "no well-formed"),
    "depth": (lambda: raw(b'{"alg":"EdDSA"}', b"[" * 9000), "no well-formed"),
    "no base64": (lambda: "!.!.!", "no well-formed"),
    "half of base64": (lambda: "a.b.c", "no well-formed"),
    "an end without end": (lambda: raw(b'{"alg":"EdDSA"}', b'{"exp":1e999}'), "no well-formed"),
    "a beginning that is no number": (lambda: signed({"nbf": {}}), "no well-formed"),
    "a time that is a truth": (lambda: signed({"iat": True}), "no well-formed"),
    "many issuers": (lambda: signed({"iss": ["a", "b"]}), "have to be texts"),
    "half of a character": (lambda: signed({"sub": "\ud800"}), "no well-formed"),
    "empty": (lambda: "..", "no well-formed"),
    "huge": (lambda: token(more="x" * 20_000), "takes Authorization"),
    "no token": (lambda: "a.b", "does not know this token"),
    "grants that are none": (lambda: token(ds=["fly:**"]), "'fly' is no operation"),
    "grants of another form": (lambda: token(ds={"read": "**"}), "a text, or a list of texts"),
    "too many grants": (lambda: token(ds=["read:**"] * 65), "at most 64 rules"),
}


def signed(claims: dict[str, Any], head: dict[str, Any] | None = None) -> str:
    """Return a token whose signature is good, with claims of any form."""
    payload = {"exp": 9999999999, "ds": ["*:**"]} | claims
    return raw(json.dumps(head or {"alg": "EdDSA"}).encode(), json.dumps(payload).encode())


def hmac_with(text: str) -> str:
    """Return a token whose HMAC has a public key as its secret; the library refuses to make one."""
    import hashlib
    import hmac

    return raw(
        b'{"alg":"HS256"}',
        b'{"exp":9999999999,"ds":["*:**"]}',
        lambda content: hmac.new(text.encode(), content, hashlib.sha256).digest(),
    )


def changed(given: str) -> str:
    head, _, signature = given.split(".")
    payload = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + 60, "ds": ["*:**"]}).encode())
    return f"{head}.{payload.rstrip(b'=').decode()}.{signature}"


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused(config: ServerConfig, attack: str) -> None:
    make, said = ATTACKS[attack]
    status, message = ask(config, make())
    assert status == 401
    assert said in message


def test_the_public_key_is_no_secret_of_rsa_either(tmp_path: Path) -> None:
    assert ask(with_key(tmp_path, pem(RSA)), hmac_with(pem(RSA)))[0] == 401


def test_issuer_and_audience(tmp_path: Path) -> None:
    config = with_key(tmp_path, pem(ED), jwt_issuer="us", jwt_audience="streams")
    assert ask(config, token(iss="us", aud=["streams", "others"])) == (201, "")
    for claims, said in (
        ({"aud": "streams"}, "lacks a claim"),
        ({"iss": "us"}, "lacks a claim"),
        ({"iss": "them", "aud": "streams"}, "another issuer"),
        ({"iss": "us", "aud": "others"}, "another audience"),
    ):
        status, message = ask(config, token(**claims))
        assert (status, said in message) == (401, True)


TEXTS = st.text(st.sampled_from("ab:%/ 3A") | st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.tuples(TEXTS, TEXTS), st.tuples(TEXTS, TEXTS), st.sampled_from([1, 300]))
def test_each_caller_has_a_name_of_its_own(one: tuple[str, str], other: tuple[str, str], times: int) -> None:
    names = [subject_of({"iss": issuer, "sub": subject * times}) for issuer, subject in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    assert max(map(len, names)) <= 256


def test_names_of_callers() -> None:
    assert subject_of({"iss": "https://id.example.com", "sub": "alice"}) == "jwt:https://id.example.com:alice"
    assert subject_of({"iss": "a", "sub": "b:c"}) == "jwt:a:b%3Ac"
    assert subject_of({"sub": "b" * 300}).startswith("jwt-sha256:")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
CLAIMS = st.dictionaries(
    st.sampled_from(["exp", "nbf", "iat", "iss", "aud", "sub", "ds", "scope", "jti"]), JSON
)
HEADS = st.builds(
    lambda algorithm, more: {"alg": algorithm} | more,
    st.sampled_from(["EdDSA", "RS256", "HS256", "none", "ES256"]) | JSON,
    st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "jku", "zip"]), JSON, max_size=2
    ),
)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(HEADS, CLAIMS, st.binary(max_size=70)), min_size=1, max_size=6), st.text("ab.=-_/+é")
)
def test_any_token_has_an_answer(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[tuple[dict, dict, bytes]], text: str
) -> None:
    """Those that nobody signed are refused; those that somebody signed do what they say, whatever that is."""
    config = with_key(tmp_path_factory.getbasetemp(), pem(ED))

    async def work() -> None:
        async with asking(config) as status:
            for head, claims, signature in tokens:
                assert (await status(signed(claims, head)))[0] in (200, 201, 401, 403)
                forged = raw(json.dumps(head).encode(), b'{"exp":9999999999,"ds":["*:**"]}', lambda _: b"")
                forged += base64.urlsafe_b64encode(signature).decode()
                assert (await status(forged))[0] == 401
            if text.isascii():
                assert (await status(f"{text}.{text}.{text}"))[0] == 401

    asyncio.run(work())


def test_grants_of_claims_and_scopes(tmp_path: Path) -> None:
    config = with_key(tmp_path, pem(ED), jwt_claim="streams")
    for claims, allowed in (
        ({"streams": ["create:a", "read:b"]}, True),
        ({"streams": "create:a read:b"}, True),
        ({"scope": "openid streams:create:a"}, True),
        ({"scope": "create:a"}, False),  # words of other systems look like grants
        ({"streams": [], "scope": "streams:create:a"}, False),
        ({"ds": ["create:a"]}, False),
        ({}, False),
    ):
        assert ask(config, token(**({"ds": None} | claims)), "a")[0] == (201 if allowed else 403)


def test_a_token_is_good_until_its_end_and_no_longer(config: ServerConfig) -> None:
    async def work() -> None:
        async with asking(config) as status:
            short = token(exp=int(time.time()) - 8)  # the leeway is ten seconds
            assert await status(short) == (201, "")
            until = time.monotonic() + 20
            while (await status(short))[0] == 200:
                assert time.monotonic() < until
                await asyncio.sleep(0.1)
            assert (await status(short))[0] == 401

    asyncio.run(work())


class KeySet:
    """Serves a JWK set that may change."""

    content = b"{}"
    status = 200

    def __init__(self) -> None:
        self.server = ScriptedServer(answer=lambda _: ScriptedServer.response(self.status, self.content))
        self.url = f"{self.server.root}/keys"

    @property
    def asked(self) -> int:
        return len(self.server.requests)


@pytest.fixture
def issuer() -> Iterator[KeySet]:
    keys = KeySet()
    with keys.server:
        yield keys


def as_set(*keys: dict[str, str]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def test_keys_from_a_url_rotate(issuer: KeySet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_sets, "_ASK_EVERY", 0.0)
    other = ed25519.Ed25519PrivateKey.generate()
    issuer.content = as_set(jwk(ED, kid="one"))
    old, new = token(headers={"kid": "one"}), token(other, headers={"kid": "two"})

    async def work() -> None:
        async with asking(ServerConfig(jwks=issuer.url)) as status:
            assert (await status(old))[0] == 201
            assert (await status(old))[0] == 200
            assert issuer.asked == 1
            # An unknown kid asks again, and is refused as long as it is unknown.
            assert (await status(new))[0] == 401
            assert issuer.asked == 2
            issuer.content = as_set(jwk(other, kid="two"))
            assert (await status(new))[0] == 200
            # What a key that is gone has signed is worth nothing, though it was known as good.
            assert (await status(old))[0] == 401
            # An outage leaves the keys that are known.
            issuer.status = 500
            assert (await status(new))[0] == 200

    asyncio.run(work())


def test_unknown_keys_ask_seldom(issuer: KeySet) -> None:
    issuer.content = as_set(jwk(ED, kid="one"))

    async def work() -> None:
        async with asking(ServerConfig(jwks=issuer.url)) as status:
            flood = [status(token(RSA, "RS256", headers={"kid": str(number)})) for number in range(50)]
            assert {one for one, _ in await asyncio.gather(*flood)} == {401}
            assert issuer.asked == 1

    asyncio.run(work())


@pytest.mark.parametrize("content", [b"", b"{}", b'{"keys": 1}', b'{"keys": [1, {"kty": "oct", "k": "eA"}]}'])
def test_a_url_without_keys_is_an_outage(issuer: KeySet, content: bytes) -> None:
    issuer.content = content
    status, said = ask(ServerConfig(jwks=issuer.url), token())
    assert (status, "cannot be reached" in said) == (503, True)


def test_a_set_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(as_set(jwk(RSA, kid="r", alg="RS256"), jwk(ED, kid="e"), jwk(EC["ES256"])))
    config = ServerConfig(jwks=str(path))
    assert ask(config, token(RSA, "RS256", headers={"kid": "r"}))[0] == 201
    assert (
        ask(config, token(RSA, "RS512", headers={"kid": "r"}))[0] == 401
    )  # the set says which one it is for
    assert ask(config, token(headers={"kid": "r"}))[0] == 401
    assert ask(config, token())[0] == 201
    assert ask(config, token(EC["ES256"], "ES256", headers={"kid": "any"}))[0] == 201


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("short", "at least 32 bytes, this one has 5"),
        ("-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----", ""),
        (pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)), "at least 2048 bits"),
        (pem(ec.generate_private_key(ec.SECP256K1())), "RSA, EC"),
        ("x" * 40 + "\n" + "y" * 40, "a secret is one line"),
        ("{" + "x" * 40, "no JWK set"),
        (json.dumps({"kty": "oct", "k": "eA"}), "no key that verifies"),
        (
            ED.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
            "it is a private key",
        ),
    ],
)
def test_a_key_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ServerStartError) as refused:
        asgi_app(with_key(tmp_path, text))
    assert str(tmp_path / "key") in str(refused.value)
    assert said in str(refused.value)


def other_forms(algorithm: str) -> dict[str, str]:
    """Return a public key in the forms that are no PEM."""
    key = KEYS[algorithm]
    public = key.public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ssh = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    lines = pem(key).splitlines()
    forms = {
        "wrapped base64": "\n".join(lines[1:-1]),
        "base64": "".join(lines[1:-1]),
        "base64 in words": " ".join(lines[1:-1]),
        "base64 of URLs": base64.urlsafe_b64encode(der).rstrip(b"=").decode(),
        "a quoted word": f"key: '{''.join(lines[1:-1])}'",
        "hexadecimal digits": der.hex(),
        "ssh": ssh,
        "ssh with a host": f"example.com {ssh} me@here",
        "ssh without its kind": ssh.split()[1],
        "a JWK in base64": base64.b64encode(json.dumps(jwk(key)).encode()).decode(),
        "a token": token(key, algorithm),
    }
    if key is RSA:
        pkcs1 = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
        forms["PKCS 1"] = base64.b64encode(pkcs1).decode()
    return forms


KEYS = {"EdDSA": ED, "RS256": RSA, "ES256": EC["ES256"]}


@pytest.mark.parametrize(("algorithm", "form"), [(name, form) for name in KEYS for form in other_forms(name)])
def test_no_form_of_a_public_key_is_a_secret(algorithm: str, form: str) -> None:
    """All who know it could sign with it."""
    text = other_forms(algorithm)[form]
    with pytest.raises(ValueError, match="-----BEGIN"):
        key_in_file(text)
    with pytest.raises(ValueError, match="no key that verifies"):
        key_set(json.dumps(as_oct(text)), secrets=True)


def as_oct(text: str) -> dict[str, str]:
    return {"kty": "oct", "k": base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()}


@pytest.mark.parametrize(
    "written",
    [
        lambda text: "\ufeff" + text,
        lambda text: f"# of the issuer\n\n{text}",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: f"Certificate:\n    Data:\n{text}\n",
    ],
)
def test_a_public_key_in_a_file_with_more(written: Callable[[str], str]) -> None:
    for key, algorithm in ((ED, "EdDSA"), (RSA, "RS256")):
        found = key_in_file(written(pem(key)))
        assert len(found.candidates(algorithm, None)) == 1
        assert found.candidates("HS256", None) == []


def test_one_jwk_in_a_file() -> None:
    found = key_in_file("\ufeff " + json.dumps(jwk(RSA, kid="r", alg="RS256")))
    assert [key.id for key in found.candidates("RS256", "r")] == ["r"]
    assert found.candidates("RS512", None) == found.candidates("HS256", None) == []
    assert key_in_file(json.dumps(as_oct(SECRET))).candidates("HS512", None)[0].key == SECRET.encode()


def test_random_secrets_are_secrets() -> None:
    for made in (secrets.token_hex, secrets.token_urlsafe, lambda size: secrets.token_bytes(size).hex(":")):
        assert key_in_file(made(64)).candidates("HS512", None)


def test_private_keys_of_a_set_stay_private() -> None:
    private = jwt.get_algorithm_by_name("EdDSA").to_jwk(ED, as_dict=True)
    found = key_set(json.dumps({"keys": [private]}), secrets=False).candidates("EdDSA", None)
    assert [key.key.public_bytes_raw() for key in found] == [ED.public_key().public_bytes_raw()]
    assert key_in_file(pem(ED)).candidates("HS256", None) == []


@pytest.mark.parametrize(
    "url", ["http://example.com/keys", "ftp://example.com/keys", "https://", "file:///etc/passwd"]
)
def test_keys_come_over_https(url: str) -> None:
    with pytest.raises(ServerStartError, match="https"):
        asgi_app(ServerConfig(jwks=url))


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    for setting in (
        {"jwks": "x", "jwt_key": tmp_path},
        {"jwks": "x", "no_auth": True},
        {"jwt_leeway": -1},
        {"jwt_leeway": 601},
    ):
        with pytest.raises(ValueError, match=r"^(jwks|jwt_|no_auth)"):
            ServerConfig(**setting)
