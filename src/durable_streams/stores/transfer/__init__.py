"""Copying all streams of one store to another, and checking the copy: offline, and resumable."""
