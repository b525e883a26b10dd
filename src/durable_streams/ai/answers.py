"""The answer of a request: as an ASGI application, or as a response of the framework that the request is from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing
from typing import Any

__all__ = ["Answer", "answer_to", "last_event_id"]

_Message = MutableMapping[str, Any]


class Answer:
    """An answer to a request: an ASGI application, and an asynchronous iterator over the bytes of its body.

    Attributes:
        status: The HTTP status.
        headers: The headers, by name in lower case.
        body: The parts of the body, as they come; None for none.
    """

    def __init__(
        self, status: int, headers: Mapping[str, str], body: AsyncGenerator[bytes, None] | None
    ) -> None:
        self.status = status
        self.headers = dict(headers)
        self.body = body

    async def __call__(
        self,
        scope: _Message,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        """Answer one request over ASGI. A client that leaves ends the answer, not what it reads."""
        del scope
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not sending.done():
                sending.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Callable[[_Message], Awaitable[None]]) -> None:
        if self.body is not None:
            async with aclosing(self.body) as parts:
                async for part in parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _left(receive: Callable[[], Awaitable[_Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def answer_to(request: Any, answer: Answer) -> Any:
    """Return an answer as the response class of the framework that the request is from; as it is without one."""
    # By name, so that no framework is imported that the caller does not use.
    frameworks = {kind.__module__.partition(".")[0] for kind in type(request).__mro__}
    for name, convert in _CONVERT.items():
        if name in frameworks:
            return convert(answer)
    return answer


def last_event_id(request: Any) -> str | None:
    """Return the place that an EventSource comes back to, None for another request."""
    headers = getattr(request, "headers", None)
    found = headers.get("last-event-id") if headers is not None else None
    return str(found) if found else None


def _for_starlette(answer: Answer) -> Any:
    from starlette.responses import Response, StreamingResponse  # noqa: PLC0415 - the caller's framework

    if answer.body is None:
        return Response(status_code=answer.status, headers=answer.headers)
    return StreamingResponse(answer.body, answer.status, answer.headers)


def _for_litestar(answer: Answer) -> Any:
    from litestar.response import Response, Stream  # noqa: PLC0415 - the caller's framework

    if answer.body is None:
        return Response(None, status_code=answer.status, headers=answer.headers)
    return Stream(
        answer.body,
        status_code=answer.status,
        headers=answer.headers,
        media_type=answer.headers["content-type"],
    )


def _for_django(answer: Answer) -> Any:
    from django.http import HttpResponse, StreamingHttpResponse  # noqa: PLC0415 - the caller's framework

    if answer.body is None:
        return HttpResponse(status=answer.status, headers=answer.headers)
    return StreamingHttpResponse(answer.body, status=answer.status, headers=answer.headers)


_CONVERT = {"starlette": _for_starlette, "litestar": _for_litestar, "django": _for_django}
