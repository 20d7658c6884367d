"""Which tool calls are made, which wait for a person, and which are refused: the rules, read and applied.

Pure. A rule is `pattern: allow | ask | deny`; a pattern is `SERVER/TOOL`, both with `*` and `?`, or `SERVER/@HINT`
with a hint of the tool's annotations (`@!HINT`: its opposite); without a slash it is every server's. In a server's
own entry patterns name tools only. Of the rules that match, the one that says most about the tool counts: a whole
name before a pattern, that before a hint, that before `*`; then likewise about the server; of equals the strictest.
Where nothing matches a tool is allowed. The operator's rules and the server's entry both count: the stricter one.

Hints are the server's own word for its tools: a server that one does not trust is better named.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

ALLOW, ASK, DENY = "allow", "ask", "deny"
STRICTNESS = {ALLOW: 0, ASK: 1, DENY: 2}
"""The policies, and which of two is stricter."""

HINTS: dict[str, tuple[str, bool]] = {
    "readOnly": ("readOnlyHint", False),
    "destructive": ("destructiveHint", True),
    "idempotent": ("idempotentHint", False),
    "openWorld": ("openWorldHint", True),
}
"""Hints by the word in a pattern: the annotation, and what counts where the server says nothing (as MCP has it)."""

_FORM = re.compile(r"(?:[^/@][^/]*/)?(?:@!?(?:" + "|".join(HINTS) + r")|[^/@][^/]*)")


class Verdict(NamedTuple):
    """What happens to a call."""

    policy: str
    """allow, ask or deny."""
    reason: str
    """Which rule says so; empty where none does."""


def is_pattern(text: str) -> bool:
    """Whether a pattern has one of the forms."""
    return _FORM.fullmatch(text) is not None


def judge(
    rules: Mapping[str, str],
    of_server: Mapping[str, str],
    server: str,
    tool: str,
    annotations: Mapping[str, Any],
) -> Verdict:
    """What happens to a call of that tool.

    Args:
        rules: `chat.tools.policy`.
        of_server: `policy` of the server's entry.
        tool: the server's own name of it.
    """
    said = [
        *_strongest(rules, server, tool, annotations, "chat.tools.policy"),
        *_strongest(of_server, server, tool, annotations, f"the entry of server {server!r}"),
    ]
    return max(said, key=lambda verdict: STRICTNESS[verdict.policy], default=Verdict(ALLOW, ""))


def _strongest(
    rules: Mapping[str, str], server: str, tool: str, annotations: Mapping[str, Any], where: str
) -> Iterator[Verdict]:
    matching = [
        ((*weight, STRICTNESS[policy]), Verdict(policy, f"{where}: {pattern}: {policy}"))
        for pattern, policy in rules.items()
        if (weight := _weight(pattern, server, tool, annotations)) is not None
    ]
    if matching:
        yield max(matching)[1]


def _weight(pattern: str, server: str, tool: str, annotations: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """How much a pattern says about a tool, and about its server; None: it does not match."""
    before, slash, wanted = pattern.rpartition("/")
    of_server = _glob(before, server) if slash else (0, 0)
    of_tool = _hinted(wanted[1:], annotations) if wanted.startswith("@") else _glob(wanted, tool)
    return None if of_server is None or of_tool is None else (*of_tool, *of_server)


def _glob(pattern: str, name: str) -> tuple[int, int] | None:
    if pattern == name:
        return 3, 0
    if pattern == "*":
        return 0, 0
    literal = len(pattern) - pattern.count("*") - pattern.count("?")
    return (2, literal) if fnmatch.fnmatchcase(name, pattern.replace("[", "[[]")) else None


def _hinted(hint: str, annotations: Mapping[str, Any]) -> tuple[int, int] | None:
    wanted, name = not hint.startswith("!"), hint.removeprefix("!")
    return (1, 0) if _hint(name, annotations) is wanted else None


def _hint(name: str, annotations: Mapping[str, Any]) -> bool:
    key, otherwise = HINTS[name]
    value = annotations.get(key)
    said = value if isinstance(value, bool) else otherwise
    return said and not _hint("readOnly", annotations) if name == "destructive" else said
