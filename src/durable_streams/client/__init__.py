"""Thin drivers that run the protocol's machines over an HTTP library."""
