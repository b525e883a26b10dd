Offset = str  # e.g., "-1" for start, "123_456" for position

LiveMode = Literal[False, True, "long-poll", "sse"]
# False: catch-up only
# True: auto-select mode
# "long-poll": explicit long-polling
# "sse": explicit Server-Sent Events

HeadersLike = dict[str, str | Callable[[], str]]
ParamsLike = dict[str, str | Callable[[], str]]
