"""What a package offers to its users, found by `inspect`: the same code describes the official packages and this one.

Run as a program with a module's name it prints the description as JSON; the standard library is all it needs, so that
it runs in an environment that holds nothing but the package described.

A description says, for each public name, what it is; for a class also its bases, what its constructor takes, its
methods and properties, the fields of a dataclass and the members of an enumeration. Of an exception it also says the
attributes of an instance made with as few arguments as it takes, with their values. A default that is a sentence is
recorded as a sentence, not with its words.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import json
import sys
import typing
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

SENTENCE = "a sentence"
DUNDERS = {"__aenter__", "__aexit__", "__aiter__", "__await__", "__enter__", "__exit__", "__iter__"}
KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional only",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional or keyword",
    inspect.Parameter.VAR_POSITIONAL: "any positional",
    inspect.Parameter.KEYWORD_ONLY: "keyword only",
    inspect.Parameter.VAR_KEYWORD: "any keyword",
}

Described = dict[str, Any]


def describe(module: ModuleType, more: Mapping[str, str]) -> dict[str, Described]:
    """Describe a module's public names.

    Args:
        module: The module. Its names are those of ``__all__``; without one, those that it defines itself.
        more: Classes that users are given but do not make themselves, by name, each as ``module:Class``. Their
            constructors are left out.

    Returns:
        Descriptions by name, in alphabetical order.
    """
    found = {name: getattr(module, name) for name in _public(module)}
    if hasattr(module, "__version__"):
        found["__version__"] = module.__version__
    described = {name: describe_value(value) for name, value in found.items()}
    for name, place in more.items():
        home, _, attribute = place.partition(":")
        described[name] = describe_value(getattr(importlib.import_module(home), attribute))
        del described[name]["constructor"]
    return dict(sorted(described.items()))


def _public(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None)
    if names is not None:
        return list(names)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and callable(value)
        if not isinstance(value, typing.TypeVar)
    ]


def describe_value(value: Any) -> Described:
    """Describe one public value."""
    if inspect.isclass(value) and value.__module__ != "builtins":
        return _describe_class(value)
    if inspect.isfunction(value):
        return {"kind": "function", "parameters": _parameters(value)}
    literals = sorted(repr(literal) for literal in _literals(value))
    return {"kind": "alias", "literals": literals} if literals else {"kind": "value"}


def _literals(alias: Any) -> Iterator[Any]:
    """Yield the values that an alias of types names one by one; ``bool`` counts as its two."""
    if alias is bool:
        yield from (False, True)
    elif typing.get_origin(alias) is typing.Literal:
        yield from typing.get_args(alias)
    elif not inspect.isclass(typing.get_origin(alias)) or typing.get_origin(alias).__name__ == "UnionType":
        for part in typing.get_args(alias):
            yield from _literals(part)


def _describe_class(kind: type) -> Described:
    described: Described = {
        "kind": "class",
        "bases": [base.__name__ for base in kind.__mro__[1:] if base is not object],
        "generic": hasattr(kind, "__class_getitem__"),
        "members": {name: _describe_member(kind, name) for name in sorted(_members(kind))},
    }
    if issubclass(kind, enum.Enum):
        described["values"] = {member.name: member.value for member in kind}
        return described
    described["constructor"] = _parameters(kind)
    if dataclasses.is_dataclass(kind):
        described["fields"] = [field.name for field in dataclasses.fields(kind)]
    if issubclass(kind, Exception):
        described["attributes"] = _attributes(kind)
    return described


def _members(kind: type) -> set[str]:
    """Return the names of methods and properties, without fields and what exceptions and enumerations inherit."""
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    found: set[str] = set()
    for base in kind.__mro__:
        if base in {object, Exception, BaseException, enum.Enum, typing.Generic}:
            continue
        for name, member in vars(base).items():
            shown = not name.startswith("_") or name in DUNDERS
            if shown and (callable(member) or isinstance(member, (property, classmethod, staticmethod))):
                found.add(name)
    return found - fields


def _describe_member(kind: type, name: str) -> Described:
    member = inspect.getattr_static(kind, name)
    if isinstance(member, property):
        return {"kind": "property"}
    awaited = inspect.iscoroutinefunction(getattr(member, "__func__", member))
    if name in DUNDERS:
        return {"kind": "method"}
    return {
        "kind": "async method" if awaited else "method",
        "parameters": _parameters(getattr(kind, name), skip_self=inspect.isfunction(member)),
    }


def _parameters(function: Any, *, skip_self: bool = False) -> dict[str, str]:
    """Describe parameters in their order: how each is passed, and its default."""
    parameters = list(inspect.signature(function).parameters.values())
    return {
        parameter.name: KINDS[parameter.kind]
        + ("" if parameter.default is parameter.empty else f", default {_shown(parameter.default)}")
        for parameter in parameters[1 if skip_self else 0 :]
    }


def _attributes(kind: type[Exception]) -> dict[str, str]:
    required = [
        parameter
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.default is parameter.empty and "any" not in KINDS[parameter.kind]
    ]
    error = kind(*("given" for _ in required))
    return {name: _shown(value) for name, value in sorted(vars(error).items()) if not name.startswith("_")}


def _shown(value: Any) -> str:
    if isinstance(value, str) and " " in value:
        return SENTENCE
    if callable(value):
        return "a function"
    return repr(value)


if __name__ == "__main__":
    json.dump(
        describe(
            importlib.import_module(sys.argv[1]), {place.partition(":")[2]: place for place in sys.argv[2:]}
        ),
        sys.stdout,
    )
