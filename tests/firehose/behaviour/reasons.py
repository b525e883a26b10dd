"""Why ours differs, by probe: one short sentence for each difference in the table."""

from __future__ import annotations

__all__ = ["REASONS"]

_PAIRED = "Every wait is reported, also after a clean end; connects and disconnects come in pairs; errors are typed."
_ENDS = "A clean end is followed by a wait of at least `initial_backoff`."

REASONS = {
    "error_type_by_name": "A type may be given by its name or its value.",
    "params_nonsense": "A caller's mistake is reported where it is made.",
    "accept_encoding": "Compression delays records. A session's own `Accept-Encoding` is sent.",
    "user_agent": "Public feeds refuse the default names of HTTP libraries. A session's own `User-Agent` is sent.",
    "nonsense": "Otherwise they fail later, during an outage.",
    "lazy": "Each `on_connect` is followed by one `on_disconnect`.",
    "invalid_utf8": "JSON is UTF-8: the record is skipped and counted, as `on_invalid` says, not altered.",
    "operational": "An error report is not a record. `error_records=False` hands it over.",
    "last_line": _ENDS,
    "not_a_number": "It is not JSON: skipped and counted, as `on_invalid` says.",
    "huge_line": "Each byte is scanned once.",
    "slow_plain": "Bytes are handed on as they come, whatever `chunk_size` says.",
    "regular_end": _PAIRED,
    "breaks": _PAIRED,
    "jitter": "`max_backoff` is a maximum.",
    "overflow": "The series is computed without overflow.",
    "accepts_and_drops": "Only data resets the backoff, and `max_retries` counts attempts without data.",
    "exhausted": "The last error includes the last answer.",
    "error_headers": "The attribute `headers` is new.",
    "status_401_later": "Credentials may have expired: one immediate attempt with fresh ones, then the error is final.",
    "status_408": "408 asks for a retry.",
    "retry_after_503": "The wait that the server asks for is respected.",
    "retry_after_429": "The wait that the server asks for is respected.",
    "rate_limit_reset": "The wait that the server asks for is respected.",
    "connection_limit": "The old connection has not ended yet; the rate limit is not exhausted.",
    "read_timeout": "A timeout is reported as `timeout`.",
    "silence": "A timeout is reported as `timeout`.",
    "tls": "No retry can fix it.",
    "proxy": "No retry can fix it.",
    "bad_url": "A caller's mistake is reported where it is made.",
    "empty": _ENDS,
    "order": _PAIRED,
    "throwing_on_disconnect": "Each `on_connect` is followed by one `on_disconnect`.",
    "closing": "Each `on_connect` is followed by one `on_disconnect`.",
    "throwing_into": "An exception that is thrown in is raised to the caller.",
    "throwing_library_error": "An exception that is thrown in is raised to the caller.",
}
