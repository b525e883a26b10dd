"""The ``demo`` command: real programs that are killed again and again, and every record counted at the end."""
