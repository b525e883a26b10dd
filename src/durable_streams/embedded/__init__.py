"""Streams in the process of an application: `DurableStreams`. docs/embedding.md is its guide."""

from __future__ import annotations

from durable_streams.embedded.streams import DurableStreams

__all__ = ["DurableStreams"]
