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
    r"context_length_exceeded|context.?length|context.?window|maximum context|max context|"
    r"too many (?:\w+ )?tokens|too_many_(?:\w+_)?tokens|prompt (?:is )?too long|"
    r"length of all messages is too long|input (?:is )?too long|reduce the length of|exceed_context_size",
    re.IGNORECASE,
)
"""The ways to say that the conversation does not fit; of the status alone nobody can tell."""

SPENT = re.compile(r"insufficient_quota|exceeded your current quota|billing_hard_limit", re.IGNORECASE)
"""429 that no waiting heals: there is no money left."""

BAD_KEY = re.compile(
    r"invalid_api_key|authentication_error|incorrect api key|invalid api key|unauthorized", re.IGNORECASE
)
"""Said inside an answer of status 200, where no status tells it."""

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
        words = clean(redact(self.words))
        text = f"{provider}: {self.what}" + (f": {words}" if words else ".")
        return Fault(self.code, text, hint=self.hint, retryable=self.retryable)


def clean(text: str, most: int = LONGEST_WORDS) -> str:
    """One line of plain words: no markup, no control characters, at most `most` characters."""
    text = text[:LONGEST_READ]
    if "<" in text:
        title = _TITLE.search(text)
        body = html.unescape(_TAGS.sub(" ", text))
        text = f"{title.group(1)} {body}" if title and title.group(1).strip() not in body else body
    text = _SPACE.sub(" ", "".join(c if c.isprintable() else " " for c in text)).strip()
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
        return _judge(status, words, said, None)
    if TOO_LONG.search(said):
        return _judge(400, words, said, None)
    if BAD_KEY.search(said):
        return _judge(401, words, said, None)
    if re.search(r"rate.?limit", said, re.IGNORECASE):
        return _judge(429, words, said, None)
    if "invalid_request" in said:
        return _judge(400, words, said, None)
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


def _judge(status: int, words: str, said: str, after_s: float | None) -> Complaint:
    told = f"(HTTP {status})"
    if status in {401, 403}:
        return Complaint(Code.LLM_AUTH_FAILED, f"the provider refused our key {told}", words)
    if status == 429:
        spent = bool(SPENT.search(said))
        return Complaint(
            Code.LLM_RATE_LIMITED,
            f"the provider says that the account is used up {told}"
            if spent
            else f"the provider asks to slow down {told}",
            words,
            hint="Check the provider's plan and billing." if spent else "",
            retry=not spent,
            after_s=after_s,
            retryable=not spent,
        )
    if status in RETRIED or status >= 500:
        return Complaint(
            Code.LLM_UNAVAILABLE, f"the provider failed {told}", words, retry=True, after_s=after_s, retryable=True
        )
    if TOO_LONG.search(said):
        return Complaint(Code.LLM_CONTEXT_TOO_LONG, f"the conversation is too long for the model {told}", words)
    if 300 <= status < 400:
        return Complaint(
            Code.LLM_REJECTED, f"the address redirects elsewhere {told}", hint="Check the provider's base_url."
        )
    return Complaint(Code.LLM_REJECTED, f"the provider rejected the request {told}", words)
