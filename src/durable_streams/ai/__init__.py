"""Answers that survive: a generation belongs to a task, its tokens to a durable stream. docs/llm.md is the guide."""

from __future__ import annotations

from durable_streams.ai.answers import Answer
from durable_streams.ai.errors import RunActiveError
from durable_streams.ai.formats import Format
from durable_streams.ai.runs import Run, Runs

__all__ = ["Answer", "Format", "Run", "RunActiveError", "Runs"]
