"""What answers that are no MCP mean: which errors they are, and that their words are bounded."""

from __future__ import annotations

import pytest

from actors.server_faults import Older, Refused, ServerEnded, Unusable
from actors.server_refusal import QUOTED, refusal, status_words, unreachable


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Unusable), (403, Unusable), (302, Unusable), (308, Unusable), (400, Refused), (404, Refused),
        (405, Refused), (408, Refused), (429, Refused), (500, Refused), (503, Refused), (599, Refused),
    ],
)  # fmt: skip
def test_every_status_is_told_as_what_it_means(status: int, kind: type[Exception]) -> None:
    error = refusal("the server", status, "", "https://there/")
    assert type(error) is kind
    assert f"HTTP {status}" in str(error)


@pytest.mark.parametrize(("status", "older"), [(400, True), (404, True), (405, True), (410, True)])
def test_an_older_way_is_tried_where_there_is_one(status: int, older: bool) -> None:
    assert isinstance(refusal("the server", status, "", older=older), Older)


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 307])
def test_an_older_way_is_not_tried_for_what_has_another_reason(status: int) -> None:
    assert not isinstance(refusal("the server", status, "", older=True), Older)


def test_what_was_said_is_quoted_in_one_line_and_bounded() -> None:
    assert status_words(500, "a\n  b") == "HTTP 500 Internal Server Error: a b"
    assert status_words(299) == "HTTP 299"
    assert len(status_words(500, "x" * 10_000)) < QUOTED + 50


def test_the_reason_is_found_below_what_libraries_say_of_it() -> None:
    error = OSError("all attempts failed")
    error.__cause__ = ExceptionGroup("attempts", [ConnectionRefusedError(111, "Connection refused")])
    found = unreachable("the server", error)
    assert isinstance(found, ServerEnded)
    assert str(found) == "the server cannot be reached: Connection refused."
    assert str(unreachable("the server", RuntimeError())) == "the server cannot be reached: RuntimeError."
