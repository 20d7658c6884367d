"""What providers' errors are turned into, beyond the recorded ones (test_completion.py)."""

from __future__ import annotations

from typing import Any

import pytest

from actors.verdict import LONGEST_WORDS, Complaint, clean, of_error, of_status
from protocol.errors import TABLE, Code


def told(complaint: Complaint) -> str:
    return complaint.fault("p", lambda words: words).body.text


STATUSES: dict[int, tuple[Code, bool]] = {
    301: (Code.LLM_REJECTED, False),
    400: (Code.LLM_REJECTED, False),
    401: (Code.LLM_AUTH_FAILED, False),
    402: (Code.LLM_REJECTED, False),
    403: (Code.LLM_AUTH_FAILED, False),
    404: (Code.LLM_REJECTED, False),
    408: (Code.LLM_UNAVAILABLE, True),
    409: (Code.LLM_UNAVAILABLE, True),
    413: (Code.LLM_REJECTED, False),
    422: (Code.LLM_REJECTED, False),
    429: (Code.LLM_RATE_LIMITED, True),
    500: (Code.LLM_UNAVAILABLE, True),
    529: (Code.LLM_UNAVAILABLE, True),
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("body", [b"", b"plain words", b"\xff\xfe", b'{"error":null}', b"[" * 100_000, b'{"a":'])
def test_every_status_with_any_body(status: int, body: bytes) -> None:
    complaint = of_status(status, body, 2.0)
    assert (complaint.code, complaint.retry) == STATUSES[status]
    assert f"(HTTP {status})" in told(complaint)
    assert complaint.fault("p", str).body.hint
    assert complaint.after_s == (2.0 if complaint.retry else None)


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 8192 tokens.",
        '{"error":{"code":"context_length_exceeded","message":"x"}}',
        "too many tokens: 10 > 5",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "input length exceeds the context window",
        '{"error":{"type":"exceed_context_size_error","message":"the request exceeds the available context size"}}',
    ],
)
def test_ways_to_say_that_it_does_not_fit(words: str) -> None:
    assert of_status(400, words.encode()).code == Code.LLM_CONTEXT_TOO_LONG
    assert of_error({"message": words}).code == Code.LLM_CONTEXT_TOO_LONG


@pytest.mark.parametrize("words", ["max_tokens must be positive", "image exceeds 5 MB", "unknown parameter: top_k"])
def test_other_refusals_are_not_taken_for_it(words: str) -> None:
    assert of_status(400, words.encode()).code == Code.LLM_REJECTED


SHAPES: list[tuple[Any, str]] = [
    ("text", "text"),
    ({"message": "a"}, "a"),
    ({"error": "a"}, "a"),
    ({"error": {"message": "a"}}, "a"),
    ([{"error": {"message": "a"}}], "a"),
    ({"detail": [{"loc": ["x"], "msg": "a"}]}, "a"),
    ({"errors": ["a", "b"]}, "a"),
    ({"error": {"message": "Provider returned error", "metadata": {"raw": "a"}}}, "Provider returned error: a"),
    ({"unknown": 1}, '{"unknown":1}'),
]


@pytest.mark.parametrize(("error", "words"), SHAPES)
def test_the_words_are_found_in_every_known_shape(error: Any, words: str) -> None:
    assert told(of_error(error)).endswith(f": {words}")


def test_words_are_cleaned_and_bounded() -> None:
    assert clean("<html><head><title>502 Bad&amp;Gateway</title><style>p{}</style></head><p>nginx\n\n</p>") == (
        "502 Bad&amp;Gateway nginx"
    )
    assert clean("a\x00b\x1b[31m\r\n c\u202e") == "a b [31m c"
    assert len(clean("x" * 100_000)) == LONGEST_WORDS
    assert clean("<script" * 50_000) == clean("<script" * 50_000)  # ends, though its pattern is not linear


def test_what_is_redacted_is_redacted_before_it_is_cut() -> None:
    complaint = of_status(400, b"x" * (LONGEST_WORDS - 5) + b"SECRET")
    assert (
        "S" not in complaint.fault("p", lambda words: words.replace("SECRET", "***")).body.text.removeprefix("p: ")[60:]
    )


def test_its_own_text_holds_none_of_the_providers_words() -> None:
    assert "SECRET" not in f"{of_status(400, b'SECRET')!r} {of_status(400, b'SECRET')}"
    assert of_status(418, b"").code in TABLE
