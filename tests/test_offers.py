from __future__ import annotations

from collections.abc import Callable

import pytest

from actors import offers
from actors.catalogue import merge
from protocol.contract_tools import ListPrompts, ListResources, ListTools
from protocol.errors import Code, Fault
from protocol.mcp_server import Catalogue, Prompt, Resource, ResourceTemplate, Tool

ONE = Catalogue(
    "one",
    [Tool("add", "adds", {"type": "object"}, {"readOnlyHint": True}), Tool("only", "", {}, {})],
    [Resource("file:///a", "a", "", ""), Resource("file:///both", "both", "", "")],
    [Prompt("greet", "", []), Prompt("both", "", [])],
    "",
    [ResourceTemplate("file:///logs/{day}", "logs", "", "")],
)
TWO = Catalogue(
    "two", [Tool("add", "", {}, {})], [Resource("file:///both", "both", "", "")], [Prompt("both", "", [])], ""
)
BOTH = {"one": ONE, "two": TWO}


def test_tools_have_the_names_that_the_model_knows() -> None:
    found = offers.tools(ListTools(), BOTH, merge(BOTH))
    assert [(tool.tool_name, tool.server, tool.name) for tool in found.tools] == [
        ("one__add", "one", "add"),
        ("only", "one", "only"),
        ("two__add", "two", "add"),
    ]
    assert found.tools[0].annotations == {"readOnlyHint": True}
    of_two = offers.tools(ListTools(server="two"), BOTH, merge(BOTH))
    assert [tool.tool_name for tool in of_two.tools] == ["two__add"]
    with pytest.raises(Fault) as caught:
        offers.prompts(ListPrompts(server="three"), BOTH)
    assert caught.value.code is Code.NOT_FOUND


def test_pages_continue_where_the_last_one_ended_whatever_went_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "PAGE_BYTES", 100)
    first = offers.resources(ListResources(), BOTH)
    assert [resource.uri for resource in first.resources] == ["file:///a"]
    second = offers.resources(ListResources(after=first.next), {"one": ONE})
    assert [(r.uri, r.server) for r in second.resources] == [("file:///both", "one")]
    third = offers.resources(ListResources(after=second.next), BOTH)
    assert [(r.uri, r.server) for r in third.resources] == [("file:///both", "two")]
    last = offers.resources(ListResources(after=third.next), BOTH)
    assert ([t.uri_template for t in last.templates], last.resources, last.next) == (["file:///logs/{day}"], [], "")


def test_the_server_is_found_where_it_is_the_only_one() -> None:
    assert offers.server_of_prompt("greet", None, BOTH) == "one"
    assert offers.server_of_prompt("greet", "elsewhere", BOTH) == "elsewhere"
    assert offers.server_of_template("file:///logs/{day}", None, BOTH) == "one"
    assert offers.server_of_resource("file:///a", None, BOTH) == "one"
    assert offers.server_of_resource("file:///logs/today", None, BOTH) == "one"
    asked: list[tuple[Callable[[], str], Code]] = [
        (lambda: offers.server_of_prompt("both", None, BOTH), Code.INVALID_MESSAGE),
        (lambda: offers.server_of_resource("file:///both", None, BOTH), Code.INVALID_MESSAGE),
        (lambda: offers.server_of_resource("file:///elsewhere", None, BOTH), Code.NOT_FOUND),
        (lambda: offers.server_of_template("x", None, BOTH), Code.NOT_FOUND),
    ]
    for ask, code in asked:
        with pytest.raises(Fault) as caught:
            ask()
        assert caught.value.code is code
