from __future__ import annotations

import subprocess
import sys

import durable_streams


def test_every_public_name_exists_and_all_is_sorted_without_repetition() -> None:
    for name in durable_streams.__all__:
        assert getattr(durable_streams, name) is not None
    assert len(set(durable_streams.__all__)) == len(durable_streams.__all__)
    assert set(durable_streams.__all__) <= set(dir(durable_streams))


def test_a_star_import_gives_exactly_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from durable_streams import *", names)
    assert set(names) - {"__builtins__"} == set(durable_streams.__all__)


def test_importing_the_package_loads_no_http_library() -> None:
    program = "import sys, durable_streams; print([m for m in ('urllib3', 'msgspec', 'granian') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
