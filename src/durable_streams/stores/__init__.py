"""Stores: where streams live. One contract (``base``), one shared machine for local ones (``local``), siblings beside."""
