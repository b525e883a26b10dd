#!/usr/bin/env python3
# ruff: noqa: T201 - it reports on a terminal
"""Find words that the project's English does without, in prose and in source.

The list holds words that are rare or dated in technical English, and gives the usual word for each. All of a file is
searched, comments, docstrings and messages alike; of tests only the docstrings, because some of their strings and names
are data.

    tools/words.py [PATH ...]       files or folders; without any, all that the project has
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEARCHED = ["src", "xdk", "docs", "tests", "benchmarks", "examples", "deploy", ".ci", "Makefile"]
SEARCHED += ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
# What is read of a folder; seed/ holds the words of others, and so does node_modules.
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".mjs", ".ts", ""}
SKIPPED = {"node_modules", "seed", "__pycache__", ".venv", ".venv-xdk"}

INSTEAD = {
    r"whoever": "name it: the caller, the reader, the gateway",
    r"anew": "again",
    r"mend(?:s|ed|ing)?": "fix, correct, repair",
    r"told": "informed, notified, stated; or say it directly",
    r"hear(?:s|ing)? of|heard of": "be notified of, learn of",
    r"befalls?|befell|befallen": "happens to",
    r"so many": "this many, that many, N",
    r"for ever": "forever, indefinitely",
    r"lets? go of|letting go of": "release",
}
BANNED = re.compile(r"\b(?:" + "|".join(f"(?:{word})" for word in INSTEAD) + r")\b", re.IGNORECASE)


def main() -> int:
    """Print every occurrence as ``file:line: word -> what to write instead``; 1 if there is one."""
    paths = [Path(argument).resolve() for argument in sys.argv[1:]] or [ROOT / name for name in SEARCHED]
    found = [line for path in paths for file in files(path) for line in occurrences(file)]
    print("\n".join(found) if found else "words: none of the list")
    return 1 if found else 0


def files(path: Path) -> Iterator[Path]:
    """Yield the files to search at or below ``path``."""
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        parts = set(file.relative_to(path).parts)
        if (
            file.is_file()
            and file.suffix in SUFFIXES
            and not parts & SKIPPED
            and not any(part.startswith(".venv") for part in parts)  # of benchmarks, too
            and file != Path(__file__).resolve()
        ):
            yield file


def occurrences(file: Path) -> Iterator[str]:
    """Yield a line of report for each banned word of ``file``; one that a line break cuts is found too."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    if file.suffix == ".py" and "tests" in file.relative_to(ROOT).parts:
        text = docstrings(text)
    # A line break, and the sign of a comment after it, count as a space; positions stay as they are.
    joined = re.sub(r"\n[ \t]*#?", lambda found: " " * len(found[0]), text)
    joined = re.sub(r" {2,}", lambda found: " " * len(found[0]), joined)
    for match in re.finditer(BANNED.pattern.replace(" ", r"\s+"), joined, re.IGNORECASE):
        line = text.count("\n", 0, match.start()) + 1
        word = re.sub(r"\s+", " ", match[0])
        instead = next(value for key, value in INSTEAD.items() if re.fullmatch(key, word, re.IGNORECASE))
        yield f"{file.relative_to(ROOT)}:{line}: {word!r} -> {instead}"


def docstrings(source: str) -> str:
    """Return only the docstrings of a module, each on its own lines."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    kept = [""] * (source.count("\n") + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and node.body and ast.get_docstring(node) is not None:
            text = node.body[0]
            for number in range(text.lineno - 1, text.end_lineno or text.lineno):
                kept[number] = source.split("\n")[number]
    return "\n".join(kept)


if __name__ == "__main__":
    sys.exit(main())
