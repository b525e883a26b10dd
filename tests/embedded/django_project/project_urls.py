"""The views of the project."""

from django.contrib.auth import alogin
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from durable_streams.django import streams


async def login(request: HttpRequest, name: str) -> HttpResponse:
    """Let somebody in, without a password."""
    user, _ = await User.objects.aget_or_create(username=name)
    await alogin(request, user)
    return HttpResponse("welcome")


async def say(_: HttpRequest, name: str, word: str) -> JsonResponse:
    """Append on the event loop."""
    stream = await streams().create(f"users/{name}/words", content_type="text/plain")
    return JsonResponse({"offset": (await stream.append(word)).next_offset})


def say_in_a_thread(_: HttpRequest, name: str, word: str) -> JsonResponse:
    """Append in a worker thread."""
    stream = streams().sync_stream(f"users/{name}/words", content_type="text/plain")
    return JsonResponse({"offset": stream.append(word).next_offset})


urlpatterns = [
    path("login/<name>", login),
    path("say/<name>/<word>", say),
    path("say-in-a-thread/<name>/<word>", say_in_a_thread),
]
