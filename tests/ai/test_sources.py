"""The recipes of docs/llm.md, run with the packages that they are for and a model of theirs, or a provider's imitation.

The functions are those of the page, cut out of it: what is documented is what runs.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import Received, Reply, ScriptedServer

from durable_streams.ai import Runs
from durable_streams.ai.sources import items_of
from durable_streams.embedded import DurableStreams

PAGE = Path(__file__).parents[2] / "docs" / "llm.md"
WORDS = ["Every ", "token ", "arrives ", "once."]
ANSWER = "".join(WORDS)
QUESTION = [{"role": "user", "content": "Well?"}]

recipes: dict[str, Any] = {}
exec(
    next(
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if "openai" in block
    ),
    recipes,
)


def answer(source: Any) -> list[Any]:
    """Return what an application's readers get of a source, as the values of its events."""

    async def main() -> list[Any]:
        async with (streams := DurableStreams()).lifespan():
            started = await Runs(streams, format="events").start("chat", source)
            body = b"".join([part async for part in started.body]).decode()
        *values, end = [json.loads(data) for data in re.findall(r"^data: (.*)$", body, re.MULTILINE)]
        assert end == {"state": "completed"}
        return values

    return asyncio.run(main())


def openai_events() -> Iterator[str]:
    for number, word in enumerate(["", *WORDS, None]):
        delta = {} if word is None else {"content": word, **({"role": "assistant"} if not number else {})}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop" if word is None else None}
        chunk = {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": "m",
            "choices": [choice],
        }
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"


def anthropic_events() -> Iterator[str]:
    usage = {"input_tokens": 1, "output_tokens": 1}
    message = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "m",
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            for word in WORDS
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": usage,
        },
        {"type": "message_stop"},
    ]
    for event in events:
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


@pytest.fixture
def provider() -> Iterator[str]:
    """Give the URL of a server that answers as the two providers do."""

    def answer(request: Received) -> Reply:
        events = anthropic_events() if request.target.endswith("/messages") else openai_events()
        return ScriptedServer.send(ScriptedServer.events("".join(events).encode()), close=True)

    with ScriptedServer(answer=answer) as server:
        yield server.root


def test_openai(provider: str) -> None:
    openai = pytest.importorskip("openai")

    async def source() -> AsyncIterator[str]:
        async with openai.AsyncOpenAI(api_key="none", base_url=f"{provider}/v1") as client:
            async for text in recipes["openai"](client, QUESTION):
                yield text

    assert answer(source()) == WORDS


def test_openai_without_async(provider: str) -> None:
    """Its synchronous stream, in a worker thread."""
    openai = pytest.importorskip("openai")

    def source() -> Iterator[str]:
        with openai.OpenAI(api_key="none", base_url=f"{provider}/v1") as client:
            for chunk in client.chat.completions.create(model="m", messages=QUESTION, stream=True):
                yield chunk.choices[0].delta.content or ""

    assert answer(source) == WORDS


def test_anthropic(provider: str) -> None:
    anthropic = pytest.importorskip("anthropic")

    async def source() -> AsyncIterator[str]:
        async with anthropic.AsyncAnthropic(api_key="none", base_url=provider) as client:
            async for text in recipes["anthropic"](client, QUESTION):
                yield text

    assert answer(source()) == WORDS


def test_pydantic_ai() -> None:
    pydantic_ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.test import TestModel

    agent = pydantic_ai.Agent(TestModel(custom_output_text=ANSWER))
    assert "".join(answer(recipes["pydantic_ai"](agent, "Well?"))) == ANSWER


def test_langgraph() -> None:
    pytest.importorskip("langgraph")
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage
    from langgraph.graph import START, MessagesState, StateGraph

    model = GenericFakeChatModel(messages=iter([AIMessage(ANSWER)]))

    async def say(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("say", say).add_edge(START, "say").compile()
    assert "".join(answer(recipes["langgraph"](graph, "Well?"))) == ANSWER


async def collected(source: Any) -> list[Any]:
    return [item async for item in items_of(source)]


@pytest.mark.parametrize("source", [iter("ab"), lambda: ["a", "b"], ("a", "b")])
def test_any_iterable(source: Any) -> None:
    assert asyncio.run(collected(source)) == ["a", "b"]


@pytest.mark.parametrize("source", [None, 5, "text", b"text", {"a": 1}])
def test_what_is_no_iterator(source: Any) -> None:
    with pytest.raises(TypeError, match="An answer is made from an iterator"):
        asyncio.run(collected(source))
