"""What providers' errors are turned into, beyond the recorded ones (test_completion.py)."""

from __future__ import annotations

from typing import Any

import pytest

from actors.verdict import LONGEST_WORDS, Complaint, of_error, of_status, plain, shortened
from protocol.errors import TABLE, Code


def told(complaint: Complaint) -> str:
    return complaint.fault("p", lambda words: words).body.text


STATUSES: dict[int, tuple[Code, bool]] = {
    301: (Code.LLM_REJECTED, False),
    400: (Code.LLM_REJECTED, False),
    401: (Code.LLM_AUTH_FAILED, False),
    402: (Code.LLM_RATE_LIMITED, False),
    403: (Code.LLM_AUTH_FAILED, False),
    404: (Code.LLM_REJECTED, False),
    408: (Code.LLM_UNAVAILABLE, True),
    409: (Code.LLM_UNAVAILABLE, True),
    413: (Code.LLM_CONTEXT_TOO_LONG, False),
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
        "too many tokens: size limit exceeded by 5 tokens. Try using shorter or fewer inputs.",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
        "input length exceeds the context window",
        '{"error":{"type":"exceed_context_size_error","message":"the request exceeds the available context size"}}',
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        "Please reduce the length of the messages or completion.",
        "Input is too long for requested model.",
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        "`inputs` tokens + `max_new_tokens` must be <= 4097",
        "`inputs` must have less than 1024 tokens. Given: 2000",
        "Invalid request: Your request exceeded model token limit: 262144",
        "Prompt exceeds max length",
        "prompt token count of 70000 exceeds the limit of 64000",
        "Prompt contains 40000 tokens, too large for model with 32768 maximum context length",
        "The number of tokens to keep from the initial prompt is greater than the context length",
    ],
)
def test_ways_to_say_that_it_does_not_fit(words: str) -> None:
    assert of_status(400, words.encode()).code == Code.LLM_CONTEXT_TOO_LONG
    assert of_error({"message": words}).code == Code.LLM_CONTEXT_TOO_LONG


@pytest.mark.parametrize(
    "words",
    [
        "max_tokens must be positive",
        "max_tokens is too large: 100000. This model supports at most 16384 completion tokens",
        "image exceeds 5 MB",
        "unknown parameter: top_k",
    ],
)
def test_other_refusals_are_not_taken_for_it(words: str) -> None:
    assert of_status(400, words.encode()).code == Code.LLM_REJECTED


SAYINGS: list[tuple[int, str, Code, bool, float | None]] = [
    # status, what it says -> code, is it tried again, after how many seconds
    (400, "API key not valid. Please pass a valid API key.", Code.LLM_AUTH_FAILED, False, None),
    (400, "Your credit balance is too low to access the API.", Code.LLM_RATE_LIMITED, False, None),
    (402, "Insufficient Balance", Code.LLM_RATE_LIMITED, False, None),
    (403, "Your input was flagged by moderation", Code.LLM_REJECTED, False, None),
    (403, "Country, region, or territory not supported", Code.LLM_AUTH_FAILED, False, None),
    (404, "The model `x` does not exist", Code.LLM_REJECTED, False, None),
    (413, "<html>413 Request Entity Too Large</html>", Code.LLM_CONTEXT_TOO_LONG, False, None),
    (429, "Request too large for gpt-4: Limit 10000, Requested 12000", Code.LLM_CONTEXT_TOO_LONG, False, None),
    (429, "Too many tokens, please wait before trying again.", Code.LLM_RATE_LIMITED, True, None),
    (429, "You exceeded your current quota, check your plan", Code.LLM_RATE_LIMITED, False, None),
    (
        429,
        'You exceeded your current quota {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34s"}',
        Code.LLM_RATE_LIMITED,
        True,
        34.0,
    ),
    (429, "Rate limit reached. Please try again in 7.66s.", Code.LLM_RATE_LIMITED, True, 7.66),
    (429, "Rate limit reached. Please try again in 1m2.5s.", Code.LLM_RATE_LIMITED, True, 62.5),
    (429, "Rate limit reached. Please try again in 250ms.", Code.LLM_RATE_LIMITED, True, 0.25),
    (429, "Please try again in 2h30m", Code.LLM_RATE_LIMITED, True, 9000.0),
    (429, "Please try again in a while", Code.LLM_RATE_LIMITED, True, None),
    (500, "the request exceeds the available context size", Code.LLM_CONTEXT_TOO_LONG, False, None),
    (529, '{"type":"error","error":{"type":"overloaded_error"}}', Code.LLM_UNAVAILABLE, True, None),
]


@pytest.mark.parametrize(("status", "words", "code", "again", "after"), SAYINGS)
def test_what_the_words_say_counts_beside_the_status(
    status: int, words: str, code: Code, again: bool, after: float | None
) -> None:
    complaint = of_status(status, words.encode())
    assert (complaint.code, complaint.retry, complaint.after_s) == (code, again, after)
    fault = complaint.fault("p", str).body
    assert fault.hint
    assert fault.retryable == (again or code in (Code.LLM_UNAVAILABLE,))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("Rate limit exceeded", Code.LLM_RATE_LIMITED),
        ("invalid_request_error: no", Code.LLM_REJECTED),
        ("Incorrect API key provided", Code.LLM_AUTH_FAILED),
        ("Insufficient credits", Code.LLM_RATE_LIMITED),
        ("overloaded_error", Code.LLM_UNAVAILABLE),
        ("it fell", Code.LLM_UNAVAILABLE),
    ],
)
def test_an_error_inside_an_answer_is_judged_by_what_it_says_and_names_no_status(words: str, code: Code) -> None:
    complaint = of_error({"message": words})
    assert complaint.code == code
    assert "HTTP" not in told(complaint)
    assert "(HTTP 502)" in told(of_error({"message": words, "code": 502}))


def test_the_provider_may_forbid_another_try() -> None:
    assert not of_status(503, b"", again=False).retry
    assert of_status(503, b"", again=True).retry


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
    assert plain("<html><head><title>502 Bad&amp;Gateway</title><style>p{}</style></head><p>nginx\n\n</p>") == (
        "502 Bad&amp;Gateway nginx"
    )
    assert plain("a\x00b\x1b[31m\r\n c\u202e") == "a b [31m c"
    assert len(shortened("x" * 100_000)) == LONGEST_WORDS
    assert plain("<script" * 50_000) == plain("<script" * 50_000)  # ends, though its pattern is not linear


@pytest.mark.parametrize("written", ["sk-a&amp;b/c", "sk-a&#38;b/c", "<b>sk-a&b/c</b>", "sk-a&b/c"])
def test_a_secret_is_found_however_a_page_writes_it(written: str) -> None:
    body = f"<html><p>the key {written} is wrong".encode()
    shown = of_status(401, body).fault("p", lambda words: words.replace("sk-a&b/c", "***")).body.text
    assert "the key *** is wrong" in shown


def test_what_is_redacted_is_redacted_before_it_is_cut() -> None:
    complaint = of_status(400, b"x" * (LONGEST_WORDS - 5) + b"SECRET")
    assert (
        "S" not in complaint.fault("p", lambda words: words.replace("SECRET", "***")).body.text.removeprefix("p: ")[60:]
    )


def test_its_own_text_holds_none_of_the_providers_words() -> None:
    assert "SECRET" not in f"{of_status(400, b'SECRET')!r} {of_status(400, b'SECRET')}"
    assert of_status(418, b"").code in TABLE
