#!/usr/bin/env python3
# ruff: noqa: T201 - it reports on a terminal
"""Wrap the paragraphs and list items of Markdown files at 100 columns.

Tables, headings, code blocks, front matter and HTML stay as they are; a code span is never cut, and a line may be
longer where it has nothing to break at.

    tools/wrap.py [--check] FILE ...
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

WIDTH = 100
ITEM = re.compile(r"(?P<lead>\s*(?:[*+-]|\d+[.)])\s+|\s*)(?P<text>.*)")
# What is no paragraph: a heading, a table's row, HTML, a quotation, a rule, a link's definition.
AS_IT_IS = re.compile(r"\s*(#|\||<|>|---|===|\[[^]]+\]:)")
BEGINS_ITEM = re.compile(r"\s*([*+-]|\d+[.)])\s+\S")
# A word is what a break may not cut: code spans and what touches them belong to it.
WORD = re.compile(r"(?:`+[^`]+`+|\S)+")


def main(arguments: list[str]) -> int:
    """Rewrite the files, or with ``--check`` name those that would change; 1 if there are any."""
    check = "--check" in arguments
    wrong = 0
    for path in (Path(argument) for argument in arguments if argument != "--check"):
        text = path.read_text(encoding="utf-8")
        wrapped = "\n".join(wrap(text.split("\n")))
        if wrapped != text:
            wrong += 1
            print(f"{path}: {'lines are not wrapped' if check else 'wrapped'} at {WIDTH} columns")
            if not check:
                path.write_text(wrapped, encoding="utf-8")
    return 1 if check and wrong else 0


def wrap(lines: list[str]) -> Iterator[str]:
    """Yield the lines of a document, its prose wrapped."""
    paragraph: list[str] = []
    fence, in_item = "", False
    front_matter = lines[0] == "---"
    for number, line in enumerate(lines):
        if front_matter:
            yield line
            front_matter = number == 0 or line != "---"
            continue
        opened = re.match(r"\s*(```+|~~~+)", line)
        code = not in_item and not paragraph and line.startswith("    ")
        if fence or opened or code or not line.strip() or AS_IT_IS.match(line):
            yield from joined(paragraph)
            paragraph = []
            if opened:
                fence = "" if fence and line.strip().startswith(fence) else fence or opened[1]
            elif line.strip() and not line.startswith(" "):
                in_item = False
            yield line
            continue
        if BEGINS_ITEM.match(line):
            yield from joined(paragraph)
            paragraph, in_item = [], True
        elif not paragraph and not line.startswith(" "):
            in_item = False
        paragraph.append(line)
    yield from joined(paragraph)


def joined(paragraph: list[str]) -> Iterator[str]:
    """Yield a paragraph's lines, filled; the second and later ones are indented like its text."""
    if not paragraph:
        return
    found = ITEM.match(paragraph[0])
    assert found is not None  # noqa: S101 - the expression matches everything
    lead = found["lead"]
    words = WORD.findall(" ".join([found["text"], *(line.strip() for line in paragraph[1:])]))
    line = lead
    for number, word in enumerate(words):
        space = " " if number and line.strip() and line != " " * len(lead) else ""
        if space and len(line) + len(space) + len(word) > WIDTH:
            yield line
            line, space = " " * len(lead), ""
        line += space + word
    yield line


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
