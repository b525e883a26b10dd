"""Where webhooks may go: every form of a private address, and names whose answers change between check and use."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import aiohttp
import pytest
from subscribing import DONE, receiving

from durable_streams.protocol.commands import Rejection
from durable_streams.server.subscriptions.urls import (
    CheckedResolver,
    ForbiddenAddressError,
    WebhookRules,
    is_public,
)

STRICT = WebhookRules(allow_localhost=False, allowed_hosts=())
LOCAL = WebhookRules(allow_localhost=True, allowed_hosts=())

PRIVATE = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.8.8.8",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:10.0.0.1",
    "::ffff:8.8.8.8",
    "::10.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:0a00:0001::1",
    "2002:7f00:0001::",
    "3fff::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not is_public(ip_address(address))
    host = f"[{address}]" if ":" in address else address
    for rules in (STRICT, LOCAL):
        with pytest.raises(Rejection) as refused:
            rules.parse(f"https://{host}/hook")
        assert (refused.value.status, refused.value.code) == (400, "WEBHOOK_URL_REJECTED")


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1", "64:ff9b::8.8.8.8"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hook",
        "//example.com",
        "https://",
        "https:///path",
        "http://example.com/",
        "http://10.0.0.1/hook",
        "http://[::1]/",
        "http://0.0.0.0/",
        "http://localhost.example.com/",
        "http://127.0.0.1@example.com/",
        "https://user:secret@example.com/",
        "https://user@example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "https://example.com:99999/",
        "https://exämple.com/",
        "https://[fe80::1%25eth0]/",
        "https://example.com./",
        "https://10.0.0.1./",
        "https://example.com/\r\nx",
        "https://example.com/\n",
        "\rhttps://example.com/",
        "https://example.com/a b",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    for rules in (STRICT, LOCAL):
        with pytest.raises(Rejection) as refused:
            rules.parse(url)
        assert refused.value.code == "WEBHOOK_URL_REJECTED"


@pytest.mark.parametrize("url", ["http://localhost:1/", "http://127.0.0.1/", "http://127.9.9.9:8080/x?y=z"])
def test_plain_http_to_this_machine_is_for_development(url: str) -> None:
    assert str(LOCAL.parse(url)) == url
    with pytest.raises(Rejection):
        STRICT.parse(url)


def test_an_allow_list() -> None:
    rules = WebhookRules(allow_localhost=False, allowed_hosts=["*.example.com", "hooks.org"])
    for url in ("https://a.example.com/", "https://HOOKS.org/x"):
        rules.parse(url)
    for url in ("https://example.com/", "https://hooks.org.evil.com/", "https://8.8.8.8/"):
        with pytest.raises(Rejection):
            rules.parse(url)


def answering(*answers: list[str]) -> Callable[..., Any]:
    """Return what takes the place of getaddrinfo: each question gets the next answer, the last one for good."""
    left = list(answers)

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        found = left.pop(0) if len(left) > 1 else left[0]
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
            for one in found
        ]

    return getaddrinfo


def on_a_loop(getaddrinfo: Callable[..., Any], work: Callable[[], Any]) -> Any:
    async def main() -> Any:
        asyncio.get_running_loop().getaddrinfo = getaddrinfo
        return await work()

    return asyncio.run(main())


@pytest.mark.parametrize(
    "answer", [["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["2606:4700::1", "::ffff:10.0.0.1"]]
)
def test_one_private_address_refuses_a_name(answer: list[str]) -> None:
    with pytest.raises(Rejection):
        on_a_loop(answering(answer), lambda: STRICT.check("https://example.com/"))
    with pytest.raises(ForbiddenAddressError):
        on_a_loop(answering(answer), lambda: CheckedResolver().resolve("example.com", 443))


def test_a_name_that_is_not_known_yet_is_checked_at_each_delivery() -> None:
    async def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    assert on_a_loop(getaddrinfo, lambda: STRICT.check("https://example.com/")).host == "example.com"


def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    """The first answer is public, the second one this machine: what connects must not ask a second time."""
    with receiving(DONE) as receiver:
        port = int(receiver.url.rpartition(":")[2])
        asked = []

        async def connect() -> None:
            asyncio.get_running_loop().getaddrinfo = getaddrinfo
            connector = aiohttp.TCPConnector(resolver=CheckedResolver(), use_dns_cache=False)
            async with aiohttp.ClientSession(connector=connector) as session:
                for _ in range(2):
                    with pytest.raises((aiohttp.ClientError, asyncio.TimeoutError)):
                        await session.post(
                            f"http://rebinding.example:{port}/",
                            data=b"{}",
                            timeout=aiohttp.ClientTimeout(total=0.3),
                        )

        changing = answering(["192.88.98.1"], ["127.0.0.1"])
        # TEST-NET and the like are refused: this one is public, and answers nobody here.

        async def getaddrinfo(host: str, port: int, **options: object) -> list[tuple[Any, ...]]:
            asked.append(host)
            found: list[tuple[Any, ...]] = await changing(host, port, **options)
            return found

        asyncio.run(connect())
        assert len([host for host in asked if host == "rebinding.example"]) == 2
        assert receiver.received.empty()
