"""What a person types to a server's question at the terminal, as the service gets it."""

from __future__ import annotations

from typing import Any

import pytest

from supervisors.chat import waiting
from supervisors.chat_questions import Form, value_of
from supervisors.chat_turn import Frame

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "title": "Your name", "description": "as people call you"},
        "age": {"type": "integer"},
        "colour": {"type": "string", "oneOf": [{"const": "r", "title": "Red"}, {"const": "b", "title": "Blue"}]},
        "sure": {"type": "boolean", "default": True},
        "some": {"type": "array", "items": {"enum": ["x", "y"]}},
    },
}


def form(**fields: Any) -> Form:
    return Form(Frame("question", question_id="q", **fields))


def test_a_form_is_filled_in_field_by_field() -> None:
    asked = form(schema=SCHEMA)
    assert asked.asks == "Your name · as people call you   (/no: decline)"
    with pytest.raises(ValueError, match="needed"):
        asked.take("  ")
    assert asked.take(" Ada ") is None
    assert asked.asks.startswith("age · empty: left out")
    with pytest.raises(ValueError, match="invalid literal"):
        asked.take("many")
    assert asked.take("") is None
    assert "one of Red, Blue" in asked.asks
    assert asked.take("blue") is None
    assert "y or n · empty: True" in asked.asks
    assert asked.take("N") is None
    assert "some of x, y, with commas between" in asked.asks
    assert asked.take("x, y") == "accept"
    assert asked.content == {"name": "Ada", "colour": "b", "sure": False, "some": ["x", "y"]}
    assert form(schema=SCHEMA).take("/no") == "decline"


@pytest.mark.parametrize("fields", [{"url": "https://a.example/b"}, {"schema": {"type": "object"}}, {"schema": None}])
def test_an_address_and_a_form_without_fields_are_agreed_to_or_not(fields: dict[str, Any]) -> None:
    asked = form(**fields)
    assert asked.asks.endswith("n: no")
    with pytest.raises(ValueError, match="y or n"):
        asked.take("what?")
    assert (asked.take("y"), asked.take("n")) == ("accept", "decline")


def test_values() -> None:
    assert value_of({"type": "number"}, "1.5") == 1.5
    assert value_of({"type": "string", "enum": ["1", "2"], "enumNames": ["One", "Two"]}, "two") == "2"
    assert value_of({"type": "string", "enum": ["1"]}, "other") == "other"  # for the service to refuse
    with pytest.raises(ValueError, match="y or n"):
        value_of({"type": "boolean"}, "perhaps")


def test_through_a_pipe_it_is_said_what_the_answer_waits_for() -> None:
    asked = Frame("question", question_id="q", server="demo", message="Who\x1b[2J\nare you?")
    assert waiting(asked) == "demo asks: Who [2J are you? Another client can answer, in this conversation."
    asked = Frame("approval_request", approval_id="a", server="demo", tool_name="add")
    assert waiting(asked) == "add (demo) waits for approval; another client can give it"
