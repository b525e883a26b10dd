"""Names, defaults, and what is asked of the server."""

from __future__ import annotations

import dataclasses
import inspect
from types import GeneratorType
from typing import Any

from observe import Trace
from probes import FATAL, probe
from wire import Reply, feed, record, records

GROUP = "Names and requests"
NAMES = ["StreamConfig", "StreamError", "StreamErrorType", "StreamState", "stream_with_retry"]
SETTINGS = [
    "max_retries",
    "initial_backoff",
    "max_backoff",
    "backoff_multiplier",
    "jitter",
    "timeout",
    "chunk_size",
    "on_connect",
    "on_disconnect",
    "on_reconnect",
    "on_error",
]


@probe(GROUP, "public names")
def names(t: Trace) -> None:
    t.note(", ".join(name for name in NAMES if hasattr(t.s, name)))


@probe(GROUP, "defaults of `StreamConfig`")
def defaults(t: Trace) -> None:
    config = t.s.StreamConfig()
    for name in SETTINGS:
        t.note(f"{name} {getattr(config, name)}")


@probe(GROUP, "`StreamConfig` by position, as a dataclass")
def positional(t: Trace) -> None:
    config = t.s.StreamConfig(3, 2.0, 4.0, 1.5, False, 9.0, 512, None, None, None, None)
    t.note(config.max_retries, config.max_backoff, config.timeout, config.chunk_size)
    t.note("replace" if dataclasses.replace(config, timeout=1).timeout == 1 else "no replace")
    t.note("equal" if t.s.StreamConfig() == t.s.StreamConfig() else "not equal")


@probe(GROUP, "invalid settings")
def nonsense(t: Trace) -> None:
    for settings in ({"initial_backoff": -1}, {"backoff_multiplier": 0}, {"max_retries": -2}):
        try:
            t.s.StreamConfig(**settings)
        except ValueError:
            t.note("ValueError")
        else:
            t.note("accepted")


@probe(GROUP, "members of `StreamErrorType`")
def error_types(t: Trace) -> None:
    t.note(
        ", ".join(
            f"{kind.name}={kind.value}" for kind in sorted(t.s.StreamErrorType, key=lambda kind: kind.name)
        )
    )


@probe(GROUP, "which error types are retryable")
def retryable(t: Trace) -> None:
    kinds = sorted(t.s.StreamErrorType, key=lambda kind: kind.name)
    t.note(" ".join(kind.value for kind in kinds if t.s.StreamError("x", kind).is_retryable))


@probe(GROUP, "`StreamError` by position: attributes, text")
def error_attributes(t: Trace) -> None:
    cause = OSError("broken")
    error = t.s.StreamError("it failed", t.s.StreamErrorType.SERVER_ERROR, cause, 503, "busy")
    t.note(
        str(error),
        error.error_type.value,
        error.original_exception is cause,
        error.status_code,
        error.response_body,
    )


@probe(GROUP, "`StreamError` with the name of a type")
def error_type_by_name(t: Trace) -> None:
    error = t.s.StreamError("it failed", "timeout")
    t.note(error, "retryable" if error.is_retryable else "not retryable")


@probe(GROUP, "defaults of `StreamState`")
def state_defaults(t: Trace) -> None:
    state = t.s.StreamState()
    for name in ("retry_count", "current_backoff", "is_connected", "total_items_received", "last_error"):
        t.note(name, getattr(state, name))


@probe(GROUP, "parameters of `stream_with_retry`")
def parameters(t: Trace) -> None:
    found = list(inspect.signature(t.s.stream_with_retry).parameters.values())[:8]
    t.note(", ".join(f"{p.name}" + ("" if p.default is p.empty else f"={p.default}") for p in found))


@probe(GROUP, "the return value; when it connects", feed(record(1), ending="hold"))
def lazy(t: Trace) -> None:
    stream = t.open(config=t.loud())
    t.note("generator" if isinstance(stream, GeneratorType) else type(stream).__name__)
    t.note("connected" if t.events[-1] == "on_connect" else "not connected before the first next()")
    next(stream)
    stream.close()


def _echo() -> list[Reply]:
    return []  # the runner answers with what it was asked


@probe(GROUP, "method, params, headers, JSON body, the session's headers and cookies", fresh=_echo)
def request_parts(t: Trace) -> None:
    import requests

    session = requests.Session()
    session.headers["Authorization"] = "Bearer secret"
    session.cookies.set("seen", "yes")
    stream = t.s.stream_with_retry(
        session,
        "post",
        t.url,
        t.quiet(),
        {"backfill_minutes": 2, "ids": ["1", "2"]},
        {"X-Mine": "1"},
        {"a": [1]},
    )
    t.note(next(stream))
    stream.close()


@probe(GROUP, "an endless feed over a `with` session that is reused", feed(records(1, 2), ending="hold"))
def session_is_usable(t: Trace) -> None:
    import requests

    with requests.Session() as session:
        for _ in range(2):
            t.run(1, session=session, config=t.quiet())


def _asked(t: Trace, **arguments: Any) -> Any:
    stream = t.open(config=t.quiet(), **arguments)
    seen = next(stream)
    stream.close()
    return seen


@probe(GROUP, "`params` as pairs, as text, as bytes; values that are None, bytes, a list", fresh=_echo)
def params_forms(t: Trace) -> None:
    forms = ([("a", "1"), ("a", "2")], "a=1&b=x", b"a=1", {"a": None, "b": b"x y", "c": [1, 2]})
    for params in forms:
        t.note(_asked(t, params=params)["target"])


@probe(GROUP, "invalid `params`", fresh=_echo)
def params_nonsense(t: Trace) -> None:
    t.run(1, params=7)


@probe(GROUP, "a header of the session that `headers` sets to None", fresh=_echo)
def dropped_header(t: Trace) -> None:
    import requests

    session = requests.Session()
    session.headers["X-Mine"] = "1"
    t.note(
        _asked(t, session=session)["x-mine"], _asked(t, session=session, headers={"X-Mine": None})["x-mine"]
    )


@probe(GROUP, "`json_data={}`", fresh=_echo)
def empty_json(t: Trace) -> None:
    seen = _asked(t, json_data={})
    t.note(seen["body"] or "no body", seen["content-type"])


@probe(GROUP, "the `Accept-Encoding` header", fresh=_echo)
def accept_encoding(t: Trace) -> None:
    t.note("gzip" if "gzip" in _asked(t, params={"show": "accept-encoding"})["header"] else "none")


@probe(GROUP, "the `User-Agent` header", fresh=_echo)
def user_agent(t: Trace) -> None:
    t.note(_asked(t, params={"show": "user-agent"})["header"].partition("/")[0])


@probe(GROUP, "a session that overrides `get`", fresh=_echo)
def own_get(t: Trace) -> None:
    import requests

    class Session(requests.Session):
        def get(self, url: Any, **options: Any) -> Any:  # type: ignore[override]
            t.note("get", url.rpartition("/")[2], options["params"], options["stream"])
            return super().get(url, **options)

    t.note(_asked(t, session=Session(), params={"a": "1"})["target"])


@probe(GROUP, "a session that completes URLs", fresh=_echo)
def base_url_session(t: Trace) -> None:
    from urllib.parse import urljoin

    import requests

    class BaseUrlSession(requests.Session):
        def request(self, method: Any, url: Any, *arguments: Any, **options: Any) -> Any:
            return super().request(method, urljoin(t.url, url), *arguments, **options)

    t.note(_asked(t, session=BaseUrlSession(), url="2/stream", params={"a": "1"})["target"])


@probe(GROUP, "a `MagicMock` as the session: data, a refusal")
def mocked(t: Trace) -> None:
    from unittest.mock import MagicMock

    import requests

    session = MagicMock()
    session.get.return_value.iter_content.return_value = [record(1), record(2).decode()]
    t.run(2, session=session)
    response = requests.Response()
    response.status_code = 403
    response._content = b"no"
    session = MagicMock(spec=requests.Session)
    session.get.return_value = response
    error: Any = t.run(session=session)
    t.note(error.response_body, error.original_exception.response is response)


@probe(GROUP, "the loggers used for a callback that raises, a wait, the end", feed(record(1)), FATAL)
def loggers(t: Trace) -> None:
    import logging

    class Seen(logging.Handler):
        def emit(self, line: logging.LogRecord) -> None:
            if not line.name.startswith("urllib3"):
                seen.add(f"{line.name} {line.levelname}")

    def raises(*_: object) -> None:
        raise RuntimeError

    seen: set[str] = set()
    logging.disable(logging.NOTSET)
    logging.getLogger().addHandler(Seen())
    logging.getLogger().setLevel(logging.INFO)
    t.run(config=t.quiet(on_error=raises))
    t.note(", ".join(sorted(seen)))
