"""The tests are in a folder of the package's name, which must not stand for the package."""

from __future__ import annotations

import sys
from importlib import import_module

sys.modules.pop("xdk", None)
import_module("xdk.streaming")
