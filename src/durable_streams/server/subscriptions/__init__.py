"""Subscriptions on a server (protocol section 8): what wakes them, their leases, their addresses, their webhooks."""

from __future__ import annotations
