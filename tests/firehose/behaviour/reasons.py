"""Why ours does differently, by probe: one short sentence for each difference in the table."""

from __future__ import annotations

__all__ = ["REASONS"]

_PAIRED = "Every wait is reported, also after a clean end; connects and disconnects come in pairs, errors are typed."
_ENDS = "An end is followed by a wait of at least `initial_backoff`."

REASONS = {
    "error_type_by_name": "A type may be given by its value.",
    "params_nonsense": "A mistake of the caller, reported where it is made.",
    "accept_encoding": "What compresses holds records back. A session's own `Accept-Encoding` is sent.",
    "user_agent": "Public feeds refuse the names of HTTP libraries. A session's own `User-Agent` is sent.",
    "nonsense": "They would fail later, in the middle of an outage.",
    "lazy": "A connect is always followed by its disconnect.",
    "invalid_utf8": "JSON is UTF-8: the record is skipped and counted, as `on_invalid` says, not altered.",
    "operational": "An error of the stream is no record. `error_records=False` hands it over.",
    "last_line": _ENDS,
    "not_a_number": "No JSON: skipped and counted, as `on_invalid` says.",
    "huge_line": "Each byte is looked at once.",
    "slow_plain": "Bytes are handed on as they come, whatever `chunk_size` says.",
    "regular_end": _PAIRED,
    "breaks": _PAIRED,
    "jitter": "`max_backoff` is a maximum.",
    "overflow": "The series is computed without overflow.",
    "accepts_and_drops": "Only data starts the series over, and `max_retries` counts attempts without data.",
    "exhausted": "The last error tells what the last answer was.",
    "error_headers": "New: `headers`.",
    "status_401_later": "Credentials expire: one attempt at once with fresh ones, then it is final.",
    "status_408": "408 asks to try again.",
    "retry_after_503": "The server says when to come back.",
    "retry_after_429": "The server says when to come back.",
    "rate_limit_reset": "The server says when to come back.",
    "connection_limit": "The old connection has yet to end; no rate limit is used up.",
    "read_timeout": "A timeout is one.",
    "silence": "A timeout is one.",
    "tls": "No retry can fix it.",
    "proxy": "No retry can fix it.",
    "bad_url": "A mistake of the caller, reported where it is made.",
    "empty": _ENDS,
    "order": _PAIRED,
    "throwing_on_disconnect": "A connect is always followed by its disconnect.",
    "closing": "A connect is always followed by its disconnect.",
    "throwing_into": "What is thrown in is the caller's, and comes out.",
    "throwing_library_error": "What is thrown in is the caller's, and comes out.",
}
