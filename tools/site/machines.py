"""The page of the machines: diagrams and invariants, made from the code, so that they cannot differ from it.

Three kinds of machines, three readings of their source:

* the reader, the follower and the feed are generators: which method runs which, and the effects that each yields;
* the producer moves batches between the values of an enum: which method sets which;
* the subscription has the table of its transitions in its docstring.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "durable_streams"
GENERATORS = {
    "The reader": ("protocol/reader.py", "Reader"),
    "The follower": ("protocol/follower.py", "Follower"),
    "The feed": ("firehose/machine.py", "Feed"),
}
PRODUCER = "protocol/producer.py"
SUBSCRIPTION = "protocol/subscription.py"
EFFECTS = "protocol/effects.py"


def page() -> str:
    """Return the page, as Markdown."""
    parts = [_introduction()]
    for title, (path, name) in GENERATORS.items():
        parts += [f"## {title}", _described(path), _mermaid(_flow(path, name))]
    parts += ["## The producer", _described(PRODUCER), _mermaid(_batches())]
    parts += ["## A subscription", _described(SUBSCRIPTION), _mermaid(_subscription())]
    return "\n\n".join(parts) + "\n"


def _introduction() -> str:
    effects = ast.get_docstring(_parsed(EFFECTS)) or ""
    vocabulary = "\n".join(line[4:] for line in effects.splitlines() if re.match(r"    [A-Z]", line))
    return f"""# The machines

What decides is pure: it has no socket, no clock and no thread, so that tests play any course of events
([architecture](architecture.md)). The diagrams and lists below are made from the code when this site is built. A
machine that is a generator yields these effects, and its driver performs them:

```text
{vocabulary}
```"""


def _parsed(path: str) -> ast.Module:
    return ast.parse((SOURCE / path).read_text(encoding="utf-8"))


def _described(path: str) -> str:
    """Return what a module says of itself, as Markdown."""
    text = ast.get_docstring(_parsed(path)) or ""
    text = re.sub(r"``(.+?)``", r"`\1`", text).replace("Invariants:", "**Invariants:**", 1)
    text = re.sub(r"(?<=\n)(?=\* )", "\n", text, count=1) if "\n* " in text else text
    return (
        f"`durable_streams/{path}`: {text[0].lower()}{text[1:]}" if text.startswith(("A ", "The ")) else text
    )


def _mermaid(lines: list[str]) -> str:
    """Return a diagram; raises ValueError for one without arrows: the code is no longer what is read here."""
    if not any("-->" in line for line in lines):
        raise ValueError(f"nothing was found in the code for {lines}")
    return "\n".join(["```mermaid", *lines, "```"])


def _flow(path: str, name: str) -> list[str]:
    """Return the generator methods of a class: what runs what, and their effects."""
    made = next(node for node in _parsed(path).body if isinstance(node, ast.ClassDef) and node.name == name)
    methods = {node.name: node for node in made.body if isinstance(node, ast.FunctionDef)}
    runs = {one: list(_yielded_from(node)) for one, node in methods.items()}
    lines, todo, seen = ["flowchart TD"], ["run"], {"run"}
    while todo:
        method = todo.pop(0)
        effects = list(dict.fromkeys(_effects(methods[method])))
        label = method.lstrip("_").replace("_", " ") + "".join(f"<br/><i>{effect}</i>" for effect in effects)
        lines.append(f'    {_node(method)}["{label}"]')
        for other in dict.fromkeys(one for one in runs[method] if one in methods):
            lines.append(f"    {_node(method)} --> {_node(other)}")
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return lines


def _node(method: str) -> str:
    return f"m{method}"


def _yielded_from(method: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(method):
        if isinstance(node, ast.YieldFrom) and isinstance(node.value, ast.Call):
            called = node.value.func
            if isinstance(called, ast.Attribute):
                yield called.attr


def _effects(method: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(method):
        if not isinstance(node, ast.Yield) or node.value is None:
            continue
        value = node.value
        if isinstance(value, ast.Name):
            yield value.id
        elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
            first = value.args[0] if value.args else None
            named = value.func.id == "Call" and isinstance(first, ast.Constant)
            yield f"Call {first.value!s}" if named and isinstance(first, ast.Constant) else value.func.id


def _batches() -> list[str]:
    """Return which method of the producer moves a batch to which state."""
    module = _parsed(PRODUCER)
    lines = ["stateDiagram-v2", "    [*] --> READY: add"]
    for method in ast.walk(module):
        if isinstance(method, ast.FunctionDef):
            name = method.name.lstrip("_").replace("_", " ")
            for state in dict.fromkeys(_states_set(method)):
                # A batch waits where it is sent, and is in flight where it is answered.
                left = ("READY", "HELD") if state == "IN_FLIGHT" else ("IN_FLIGHT",)
                lines += [f"    {before} --> {state}: {name}" for before in left]
    return [*lines, "    IN_FLIGHT --> [*]: acknowledged"]


def _states_set(method: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(method):
        if isinstance(node, ast.Assign):
            for value in ast.walk(node.value):
                if (
                    isinstance(value, ast.Attribute)
                    and isinstance(value.value, ast.Name)
                    and value.value.id == "BatchState"
                ):
                    yield value.attr


_ROW = re.compile(r"^(?P<states>[A-Za-z, ]+?)\s{2,}(?P<event>\S.*?)\s{2,}(?P<after>\S.*)$")
_STATES = ("IDLE", "open", "held", "due", "accepted")


def _subscription() -> list[str]:
    """Return the transitions of the table in the docstring; refusals (409) change nothing, and are left out."""
    text = ast.get_docstring(_parsed(SUBSCRIPTION)) or ""
    table = text.partition("```text\n")[2].partition("```")[0]
    lines = ["stateDiagram-v2", "    [*] --> IDLE"]
    for row in table.splitlines()[1:]:
        found = _ROW.match(row)
        if found is None or "409" in found["after"]:
            continue
        after = [state for state in _STATES if re.search(rf"\b{state}\b", found["after"])]
        event = found["event"].replace(":", ",")
        for before in map(str.strip, found["states"].split(",")):
            lines += [f"    {before} --> {state}: {event}" for state in _reached(before, event, after)]
    return lines


def _reached(before: str, event: str, after: list[str]) -> list[str]:
    if "ack" in event and before in after:
        return [before]  # the lease of whom acknowledges begins again
    if "ack" in event and "IDLE" not in after:
        return ["accepted"]  # a delivery that acknowledges before it answers
    return after
