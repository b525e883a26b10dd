"""The tool that makes the sync side: what its marks mean, and that the files are up to date."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools/make_sync.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sync", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_marks_leave_the_sync_block_or_nothing(tool: ModuleType) -> None:
    source = """\
def f():
    if ASYNC:
        one()
        if ASYNC:
            inner()
    else:
        # the reason
        two()
    three()


if ASYNC:

    class Only:
        pass
"""
    left = tool.without_async_blocks(source)
    assert left.rstrip() == "def f():\n    # the reason\n    two()\n    three()"


def test_keywords_names_and_phrases_are_replaced_where_they_stand_alone(tool: ModuleType) -> None:
    source = (
        '"""The async\n    read: with `aclose`."""\n'
        "async def aclose(self: AsyncExchange) -> None:\n"
        "    await asyncio.to_thread(store.save, self.offset)\n"
        "    async with self.not_aclose() as it:\n"
        "        return [await x async for x in it]\n"
    )
    unused = set(tool.PHRASES)
    assert tool.replaced(source, unused) == (
        '"""The sync read: with `close`."""\n'
        "def close(self: Exchange) -> None:\n"
        "    store.save(self.offset)\n"
        "    with self.not_aclose() as it:\n"
        "        return [x for x in it]\n"
    )
    assert set(tool.PHRASES) - unused == {"The async read:"}


def test_docstrings_are_wrapped_again_and_lists_left_alone(tool: ModuleType) -> None:
    words = "word " * 30
    source = (
        f'    """First.\n\n    {words}\n\n    Args:\n        name: {words}\n\n    * one\n    * two\n    """\n'
    )
    wrapped = tool.refilled(source)
    assert max(map(len, wrapped.splitlines())) <= tool.WIDTH
    assert "\n            word" in wrapped, "an argument's text hangs"
    assert wrapped.endswith('    * one\n    * two\n    """\n')
    assert tool.refilled(wrapped) == wrapped


def test_the_sync_side_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, TOOL, "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
