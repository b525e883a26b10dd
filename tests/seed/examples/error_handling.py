from durable_streams import (
    DurableStreamError,
    StreamNotFoundError,
    StreamClosedError,
    SeqConflictError,
)

try:
    handle.append(data)
except StreamClosedError as e:
    print(f"Stream closed: {e.url}")
except SeqConflictError:
    print("Sequence conflict")
except DurableStreamError as e:
    print(f"Error {e.code}: {e}")
