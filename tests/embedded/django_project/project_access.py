"""Who may do what with the streams of the project: each user everything below a path of its own."""

from durable_streams.django import user_of
from durable_streams.server import Grant, Operation, ServerRequest


async def authorize(operation: Operation, path: str, request: ServerRequest) -> Grant | None:
    """Ask who sent the request; None for nobody."""
    user = await user_of(request)
    if not user.is_authenticated:
        return None
    return Grant.of(f"*:users/{user.username}/**", subject=user.username)
