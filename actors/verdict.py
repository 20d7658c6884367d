"""What a provider's error means: its status, codes and words, turned into a row of our error table.

Free of I/O. A `Complaint` is an error as a provider told it: its words are strangers' text and may quote
the key that we sent, so they leave this module only through `Complaint.fault`, which redacts them first
and cuts them after. The tables are what 18 providers are seen to say; what none of them matches is judged
by its status alone.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import msgspec

from protocol.errors import Code, Fault

LONGEST_READ = 8192  # characters of a provider's words that are cleaned; the patterns below are not linear
LONGEST_WORDS = 300  # characters of a provider's own words in an error: a sentence or two
RETRIED = frozenset({408, 409, 429})  # and every 5xx: the same request may succeed a moment later

TOO_LONG = re.compile(
    r"context_length_exceeded|context.?length|context.?window|context limit|max(?:imum)? context|exceed_context_size|"
    r"context size|"
    r"too many (?:\w+ )?tokens|too_many_(?:\w+_)?tokens|too many total text bytes|"
    r"prompt (?:is )?too long|input (?:is )?too long|length of all messages is too long|maximum prompt length|"
    r"prompt exceeds max|prompt token count of \d+ exceeds|exceeds the maximum number of tokens|"
    r"exceeded model token limit|reduce the length of|max_new_tokens` must be <=|must have less than \d+ tokens",
    re.IGNORECASE,
)
"""The ways to say that the conversation does not fit; of the status alone nobody can tell."""

TOO_LARGE = re.compile(r"request too large|request_too_large|tokens must be reduced", re.IGNORECASE)
"""429 that no waiting heals: this one request is more than a minute may have."""

SPENT = re.compile(
    r"insufficient_(?:user_)?quota|billing_hard_limit|insufficient (?:account )?balance|insufficient credits|"
    r"credit balance is too low|arrearage",
    re.IGNORECASE,
)
"""No waiting heals it: there is no money left."""

QUOTA = re.compile(r"exceeded your current quota", re.IGNORECASE)
"""The same, unless the provider says when to come back: then it is the quota of a minute."""

BAD_KEY = re.compile(
    r"invalid_api_key|api_key_invalid|authentication_error|incorrect api key|invalid api key|api key not valid|"
    r"api key expired|no auth credentials|unauthorized",
    re.IGNORECASE,
)
"""Said with a status of 400, or inside an answer of status 200."""

FLAGGED = re.compile(r"moderation|flagged", re.IGNORECASE)
"""403 that is not of the key: what was written is not wanted."""

_AGAIN_IN = re.compile(
    r"(?:try again|retry) (?:in|after) (?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)(m?s))?|"
    r"\"retryDelay\":\s*\"(\d+(?:\.\d+)?)s\"",
    re.IGNORECASE,
)

_SAID = (
    (400, TOO_LONG),
    (401, BAD_KEY),
    (402, SPENT),
    (429, re.compile(r"rate.?limit|too many requests", re.IGNORECASE)),
    (503, re.compile(r"overloaded|capacity", re.IGNORECASE)),
    (400, re.compile(r"invalid_request", re.IGNORECASE)),
)
"""What an error inside an answer of status 200 says -> the status that it would have had."""

_OF_THE_REQUEST = frozenset({Code.LLM_REJECTED, Code.LLM_CONTEXT_TOO_LONG})

_TAGS = re.compile(r"(?is)<(script|style|head)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>")
_TITLE = re.compile(r"(?is)<title[^>]*>(.*?)</title>")
_SPACE = re.compile(r"\s+")


class Complaint(Exception):
    """The request failed, as the provider (or the way to it) told it.

    Args:
        code: row of our table.
        what: what happened, in our own words; must hold nothing of the provider's.
        words: the provider's own words, as they came; never shown before `fault` cleaned them.
        hint: overrides the row's hint.
        retry: the same request may be sent again by us, as long as nothing of the answer was shown.
        after_s: seconds that the provider asked to wait before that; None: it did not say.
        retryable: overrides the row's answer for the client.
    """

    def __init__(
        self,
        code: Code,
        what: str,
        words: str = "",
        *,
        hint: str = "",
        retry: bool = False,
        after_s: float | None = None,
        retryable: bool | None = None,
    ) -> None:
        # Not the words: a traceback or a log line made of this exception must stay free of them.
        super().__init__(code, what)
        self.code = code
        self.what = what
        self.words = words
        self.hint = hint
        self.retry = retry
        self.after_s = after_s
        self.retryable = retryable

    @property
    def elsewhere(self) -> bool:
        """Another provider may answer the same request; where the request itself is refused, none is asked."""
        return self.code not in _OF_THE_REQUEST

    def fault(self, provider: str, redact: Callable[[str], str]) -> Fault:
        """The typed error for the client; `redact` takes the secrets out of a text."""
        # Before markup is taken out, and after: what a page writes as &amp; is only then as it is.
        words = shortened(redact(plain(redact(self.words))))
        text = f"{provider}: {self.what}" + (f": {words}" if words else ".")
        return Fault(self.code, text, hint=self.hint, retryable=self.retryable)


def plain(text: str) -> str:
    """One line of plain words: no markup, no control characters."""
    text = text[:LONGEST_READ]
    if "<" in text or "&" in text:
        title = _TITLE.search(text)
        body = html.unescape(_TAGS.sub(" ", text))
        text = f"{title.group(1)} {body}" if title and title.group(1).strip() not in body else body
    return _SPACE.sub(" ", "".join(c if c.isprintable() else " " for c in text)).strip()


def shortened(text: str, most: int = LONGEST_WORDS) -> str:
    """At most `most` characters of it."""
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def of_status(status: int, body: bytes, after_s: float | None = None, again: bool = True) -> Complaint:
    """An answer whose HTTP status is not 2xx; `body` may be cut, empty or anything.

    Args:
        after_s: seconds that the provider asks to wait.
        again: the provider does not forbid another try.
    """
    complaint = _of_answer(status, body, after_s)
    complaint.retry = complaint.retry and again
    return complaint


def _of_answer(status: int, body: bytes, after_s: float | None) -> Complaint:
    text = body.decode("utf-8", "replace")
    try:
        answer = msgspec.json.decode(body)
    except (
        ValueError,
        RecursionError,
    ):  # DecodeError, and what is no UTF-8: a page or plain text, or a body cut at our limit
        return _judge(status, text, text, after_s)
    return _judge(status, words_of(answer) or text, text, after_s)


def of_error(error: Any) -> Complaint:
    """An error object (or list, or text) that came inside an answer of status 200."""
    said = msgspec.json.encode(error).decode()
    words = words_of(error) or said
    status = _status_in(error)
    if status is not None:
        return _judge(status, words, said)
    for status, pattern in _SAID:
        if pattern.search(said):
            return _judge(status, words, said, told="")
    return Complaint(Code.LLM_UNAVAILABLE, "the provider ended its answer with an error", words, retry=True)


def words_of(answer: Any) -> str:
    """The provider's sentence out of its error object, whichever of the known shapes it has."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, list):
        return next((words for item in answer if (words := words_of(item))), "")
    if not isinstance(answer, dict):
        return ""
    for key in ("error", "message", "msg", "detail", "errors", "error_message"):
        words = words_of(answer.get(key))
        if words:
            raw = _nested(answer)
            return f"{words}: {raw}" if raw and raw not in words else words
    return ""


def _nested(error: dict[Any, Any]) -> str:
    # A router's own message is often only "Provider returned error"; the cause is in metadata.raw.
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    return raw if isinstance(raw, str) else ""


def _status_in(error: Any) -> int | None:
    """An HTTP status that an error object names as its code."""
    if isinstance(error, list):
        return next((status for item in error if (status := _status_in(item)) is not None), None)
    if not isinstance(error, dict):
        return None
    for key in ("code", "status", "status_code"):
        value = error.get(key)
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    return _status_in(error.get("error"))


def _judge(status: int, words: str, said: str, after_s: float | None = None, *, told: str | None = None) -> Complaint:
    """The complaint of a status.

    Args:
        said: all that the provider said; `words` is the part that is shown.
        told: names the status; empty where it was only guessed.
    """
    told = f" (HTTP {status})" if told is None else told
    if status in {401, 403} and not (status == 403 and FLAGGED.search(said)):
        return Complaint(Code.LLM_AUTH_FAILED, f"the provider refused our key{told}", words)
    if after_s is None:
        after_s = _after(said)
    spent = SPENT.search(said) or (after_s is None and QUOTA.search(said))
    if status == 402 or (spent and status < 500):
        return Complaint(
            Code.LLM_RATE_LIMITED,
            f"the provider says that the account is used up{told}",
            words,
            hint="Check the provider's plan and billing.",
            retryable=False,
        )
    if status == 413 or (TOO_LARGE if status == 429 else TOO_LONG).search(said):
        return Complaint(Code.LLM_CONTEXT_TOO_LONG, f"the conversation is too long for the model{told}", words)
    if status == 429:
        hint = f"Wait {after_s:.0f} s, then send the message again." if after_s else ""
        return Complaint(
            Code.LLM_RATE_LIMITED,
            f"the provider asks to slow down{told}",
            words,
            hint=hint,
            retry=True,
            after_s=after_s,
        )
    if status in RETRIED or status >= 500:
        return Complaint(Code.LLM_UNAVAILABLE, f"the provider failed{told}", words, retry=True, after_s=after_s)
    if BAD_KEY.search(said):
        return Complaint(Code.LLM_AUTH_FAILED, f"the provider refused our key{told}", words)
    if 300 <= status < 400:
        return Complaint(
            Code.LLM_REJECTED, f"the address redirects elsewhere{told}", hint="Check the provider's base_url."
        )
    hint = "Check the provider's base_url and model." if status == 404 else ""
    return Complaint(Code.LLM_REJECTED, f"the provider rejected the request{told}", words, hint=hint)


def _after(said: str) -> float | None:
    """Seconds until another try makes sense, where only the words say so: `try again in 1m2.5s`."""
    found = _AGAIN_IN.search(said)
    if found is None:
        return None
    hours, minutes, number, unit, delay = found.groups()
    if not any((hours, minutes, number, delay)):
        return None
    seconds = float(delay or number or 0) / (1000 if (unit or "").lower() == "ms" else 1)
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + seconds
