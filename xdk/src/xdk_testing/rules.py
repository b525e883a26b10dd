"""The rules of the imitated filtered stream: what they are called, what changes them, which records they match.

Pure: no I/O. Of X's query language only words are understood: every other operator (``lang:``, ``has:``, ``-is:``,
``OR``, brackets) matches everything.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

__all__ = ["PROBLEMS", "Rule", "Rules", "invalid_request"]

PROBLEMS = "https://api.twitter.com/2/problems/"
_TERM = re.compile(r'"[^"]+"|\S+')
_WORD = re.compile(r"[#@$]?\w[^:()]*")
_FIRST_ID = 1_166_916_266_197_536_768  # ids are of 19 digits, as in X's documents


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, as the API shows it. ``tag`` may be absent."""

    id: str
    value: str
    tag: str | None = None

    def shown(self) -> dict[str, str]:
        """Return it as it stands in an answer."""
        return {"id": self.id, "value": self.value} | ({} if self.tag is None else {"tag": self.tag})

    def matched(self) -> dict[str, str]:
        """Return it as it stands in a record's ``matching_rules``."""
        return {"id": self.id} | ({} if self.tag is None else {"tag": self.tag})

    def matches(self, text: str) -> bool:
        """Whether the text has all words of the rule, in any case."""
        folded = text.casefold()
        return all(word in folded for word in _words(self.value))


def _words(value: str) -> list[str]:
    terms = [term for term in _TERM.findall(value) if term not in ("OR", "AND")]
    return [term.strip('"').casefold() for term in terms if term[0] == '"' or _WORD.fullmatch(term)]


class Rules:
    """The rules of one app, in the order in which they were added."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._ids = itertools.count(_FIRST_ID)
        self._rules: dict[str, Rule] = {}
        self.add({"value": value} for value in values)

    def matching(self, record: Mapping[str, Any]) -> list[dict[str, str]]:
        """Return the ``matching_rules`` of a record; the text is that of its ``data``."""
        data = record.get("data")
        text = str(data.get("text", "")) if isinstance(data, Mapping) else ""
        return [rule.matched() for rule in self._rules.values() if rule.matches(text)]

    def answer(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Return the body for a GET; ``ids`` in the query chooses."""
        wanted = query.get("ids")
        rules = [
            rule.shown() for rule in self._rules.values() if wanted is None or rule.id in wanted.split(",")
        ]
        meta = {"sent": _now(), "result_count": len(rules)}
        return {"data": rules, "meta": meta} if rules else {"meta": meta}

    def change(self, body: Any, *, dry_run: bool = False) -> tuple[int, dict[str, Any]]:
        """Return status and body for a POST; ``dry_run`` changes nothing."""
        match body:
            case {"add": [_, *_] as new} if "delete" not in body and all(map(_is_rule, new)):
                return self.add(new, dry_run=dry_run)
            case {"delete": {"ids": [_, *_] as ids}} if "add" not in body:
                return self._delete([rule for rule in self._rules.values() if rule.id in ids], ids, dry_run)
            case {"delete": {"values": [_, *_] as values}} if "add" not in body:
                return self._delete(
                    [rule for rule in self._rules.values() if rule.value in values], values, dry_run
                )
        return 400, invalid_request({}, "The body must have either rules to `add` or those to `delete`.")

    def add(self, new: Iterable[Mapping[str, Any]], *, dry_run: bool = False) -> tuple[int, dict[str, Any]]:
        """Add rules; return status and body."""
        there = {rule.value: rule for rule in self._rules.values()}
        added: list[Rule] = []
        errors = []
        for item in new:
            if (old := there.get(item["value"])) is not None:
                errors.append(
                    {
                        "value": old.value,
                        "id": old.id,
                        "title": "DuplicateRule",
                        "type": f"{PROBLEMS}duplicate-rules",
                    }
                )
                continue
            rule = Rule(str(next(self._ids)), item["value"], item.get("tag"))
            there[rule.value] = rule
            added.append(rule)
        if not dry_run:
            self._rules.update((rule.id, rule) for rule in added)
        summary = {
            "created": len(added),
            "not_created": len(errors),
            "valid": len(added),
            "invalid": len(errors),
        }
        body: dict[str, Any] = {"meta": {"sent": _now(), "summary": summary}}
        if added:
            body = {"data": [rule.shown() for rule in added], **body}
        if errors:
            body["errors"] = errors
        return 201 if added else 200, body

    def _delete(self, found: list[Rule], wanted: list[Any], dry_run: bool) -> tuple[int, dict[str, Any]]:
        if not dry_run:
            for rule in found:
                del self._rules[rule.id]
        missing = len(wanted) - len(found)
        body: dict[str, Any] = {
            "meta": {"sent": _now(), "summary": {"deleted": len(found), "not_deleted": missing}}
        }
        if missing:
            known = {rule.id for rule in found} | {rule.value for rule in found}
            body["errors"] = [
                {
                    "title": "Not Found Error",
                    "detail": f"Rule {item} does not exist.",
                    "type": f"{PROBLEMS}resource-not-found",
                }
                for item in wanted
                if item not in known
            ]
        return 200, body


def invalid_request(parameters: Mapping[str, list[str]], message: str) -> dict[str, Any]:
    """Return the body of a 400."""
    return {
        "errors": [{"parameters": dict(parameters), "message": message}],
        "title": "Invalid Request",
        "detail": "One or more parameters to your request was invalid.",
        "type": f"{PROBLEMS}invalid-request",
    }


def _is_rule(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("value"), str) and item["value"].strip() != ""


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
