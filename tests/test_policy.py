"""The rules for tool calls: the one that says most counts, of equals the strictest, and the stricter of two files."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.policy import ALLOW, ASK, DENY, HINTS, STRICTNESS, Verdict, is_pattern, judge
from actors.reference import defaults
from actors.servers_file import parse_servers
from actors.settings import Invalid, validate
from actors.trees import with_value

READS = {"readOnlyHint": True}


def policy(
    rules: dict[str, str], tool: str = "write_file", annotations: dict[str, Any] | None = None, **more: Any
) -> str:
    return judge(rules, more.get("entry", {}), more.get("server", "files"), tool, annotations or {}).policy


@pytest.mark.parametrize(
    ("rules", "tool", "annotations", "expected"),
    [
        ({}, "x", {}, ALLOW),
        ({"*": ASK}, "x", {}, ASK),
        ({"files/*": ASK}, "x", {}, ASK),
        ({"other/*": ASK}, "x", {}, ALLOW),
        ({"fil*/x": DENY, "other/x": ASK}, "x", {}, DENY),
        ({"x": DENY}, "x", {}, DENY),
        ({"x": DENY}, "xy", {}, ALLOW),
        # what says most about the tool
        ({"*": DENY, "files/write_*": ASK, "files/write_file": ALLOW}, "write_file", {}, ALLOW),
        ({"*": DENY, "files/write_*": ASK, "files/write_file": ALLOW}, "write_dir", {}, ASK),
        ({"*": DENY, "files/write_*": ASK, "files/write_file": ALLOW}, "read", {}, DENY),
        ({"w*": DENY, "write_*": ALLOW}, "write_file", {}, ALLOW),
        ({"@readOnly": ALLOW, "*": ASK}, "read", READS, ALLOW),
        ({"@readOnly": ALLOW, "*": ASK}, "read", {}, ASK),
        ({"files/*": ALLOW, "*/@destructive": ASK}, "x", {}, ASK),
        # then about the server
        ({"*": ASK, "files/*": ALLOW}, "x", {}, ALLOW),
        ({"fi*/x": ASK, "files/x": ALLOW}, "x", {}, ALLOW),
        ({"*/x": ASK, "fi*/x": ALLOW}, "x", {}, ALLOW),
        # of equals the strictest
        ({"files/@!readOnly": ALLOW, "files/@destructive": ASK}, "x", {}, ASK),
        ({"?": ALLOW, "x*": DENY}, "x", {}, DENY),
        # hints that are not given count as the protocol says
        ({"@destructive": ASK}, "x", {}, ASK),
        ({"@destructive": ASK}, "x", READS, ALLOW),
        ({"@destructive": ASK}, "x", {"destructiveHint": False}, ALLOW),
        ({"@openWorld": ASK}, "x", {}, ASK),
        ({"@!openWorld": ASK}, "x", {"openWorldHint": False}, ASK),
        ({"@idempotent": ASK}, "x", {"idempotentHint": "yes"}, ALLOW),
        # names are no patterns
        ({"[ab]": DENY}, "a", {}, ALLOW),
        ({"[ab]": DENY}, "[ab]", {}, DENY),
    ],
)
def test_which_rule_counts(rules: dict[str, str], tool: str, annotations: dict[str, Any], expected: str) -> None:
    assert all(map(is_pattern, rules))
    assert policy(rules, tool, annotations) == expected
    assert policy(dict(reversed(rules.items())), tool, annotations) == expected, "whatever the order"


PATTERNS = st.sampled_from(["*", "x", "x*", "s/x", "s/*", "*/x", "@readOnly", "s/@!readOnly", "other/*"])
RULES = st.dictionaries(PATTERNS, st.sampled_from(list(STRICTNESS)))


@given(RULES, RULES)
def test_neither_file_loosens_what_the_other_demands(rules: dict[str, str], entry: dict[str, str]) -> None:
    entry = {pattern: said for pattern, said in entry.items() if "/" not in pattern}
    both = judge(rules, entry, "s", "x", {})
    alone = [judge(rules, {}, "s", "x", {}), judge({}, entry, "s", "x", {})]
    assert STRICTNESS[both.policy] == max(STRICTNESS[one.policy] for one in alone)
    assert both in alone or both == Verdict(ALLOW, "")
    assert both.reason or both.policy == ALLOW


@pytest.mark.parametrize("text", ["", "/x", "s/", "@readonly", "s/@", "a/b/c", "@x/y", "!x/@"])
def test_what_is_no_pattern(text: str) -> None:
    assert not is_pattern(text)


def test_a_mistake_in_the_rules_is_refused_in_both_files() -> None:
    good = {"files/write_*": "ask", **{f"*/@!{hint}": "deny" for hint in HINTS}}
    tree = defaults().data
    assert validate(with_value(tree, ("chat", "tools", "policy"), good)).chat.tools.policy == good
    for wrong in ({"*/@readonly": "ask"}, {"*": "aks"}, {"*": True}, ["ask"], {"": "ask"}):
        with pytest.raises(Invalid):
            validate(with_value(tree, ("chat", "tools", "policy"), wrong))
    text = '{"mcpServers": {"s": {"command": "x", "policy": %s}}}'
    for said, rules in (('"deny"', {"*": "deny"}), ('{"write_*": "ask"}', {"write_*": "ask"}), ("{}", {})):
        read = parse_servers(text % said, "f", {})
        assert read.servers["s"].policy == rules
    for said in ('"aks"', "true", '{"s/x": "ask"}', '{"x": []}', '{"@readonly": "ask"}', "[]"):
        read = parse_servers(text % said, "f", {})
        assert not read.servers, "a server whose rules are not understood is left out"
        assert "policy" in read.errors[0]
