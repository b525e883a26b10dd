"""Stores: where streams live. One contract (``base``), one machine for local ones (``local``), siblings beside."""
