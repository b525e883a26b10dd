"""What can go wrong with rows that follow a stream, beside the errors of the client."""

from __future__ import annotations

from durable_streams.errors import DurableStreamError

__all__ = ["ChangesLostError", "StateTimeoutError"]


class StateTimeoutError(DurableStreamError, TimeoutError):
    """The rows did not get as far as that in time; the change may still come.

    Args:
        message: What happened.
        **context: As for DurableStreamError.
    """

    default_code = "STATE_TIMEOUT"


class ChangesLostError(DurableStreamError):
    """A consumer of `changes` did not keep up, so that the changes behind its last one are lost to it.

    Args:
        message: What happened.
        **context: As for DurableStreamError.
    """

    default_code = "CHANGES_LOST"
