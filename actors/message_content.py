"""What a user's message may hold: text, or parts with images, as `chat/completions` wants them.

Pure. Checks what a client sent against the limits of `welcome.limits`, and makes of it what is stored, shown and sent
to the model: the same thing for all three. An image is named by an https address, which the provider fetches
itself (nothing is fetched here), or comes along as a data URI. For a model that reads text only a message with images
is refused, and those of earlier turns are replaced by words.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from protocol.client import MAX_IMAGE_BYTES, MAX_PARTS, MAX_TEXT_CHARS, MAX_URL_CHARS, ImagePart, TextPart
from protocol.errors import Code, Fault
from protocol.watcher import Provider
from protocol.writer import Event, ToolEnded, UserEvent

DATA_URI = re.compile(r"data:image/[a-z0-9][a-z0-9.+-]{0,60}(?:;[a-z0-9.+-]+=[^;,]{0,60})*;base64,", re.IGNORECASE)
DETAIL = re.compile(r"[a-z_]{1,20}")  # auto, low, high, and what comes next
TOLD_BYTES = 20 * 2**20  # of the images of earlier messages in one request; providers take 20 to 50 MB a request
IMAGE_PAST = "[An image was here. It is too long ago to be sent again.]"
IMAGE_GONE = "[An image was here. This model reads text only.]"

Content = str | list[dict[str, Any]]
"""Text, or parts: `{type: text, text}`, `{type: image_url, image_url: {url, detail?}}`."""


def content_of(message: str | list[TextPart | ImagePart]) -> Content:
    """What is kept of a client's message. Raises Fault: INVALID_MESSAGE naming the field, MESSAGE_TOO_LARGE."""
    texts = [message] if isinstance(message, str) else [part.text for part in message if isinstance(part, TextPart)]
    if sum(map(len, texts)) > MAX_TEXT_CHARS:
        raise Fault(Code.MESSAGE_TOO_LARGE, f"The message is longer than {MAX_TEXT_CHARS} characters.")
    images = 0 if isinstance(message, str) else len(message) - len(texts)
    if not images and not any(text.strip() for text in texts):
        raise Fault(Code.INVALID_MESSAGE, "The message is empty - at `$.message`.")
    if isinstance(message, str):
        return message
    if len(message) > MAX_PARTS:
        raise Fault(Code.MESSAGE_TOO_LARGE, f"The message has more than {MAX_PARTS} parts - at `$.message`.")
    carried = sum(len(part.image_url.url) for part in message if isinstance(part, ImagePart) and _carries(part))
    if carried > MAX_IMAGE_BYTES:
        raise Fault(Code.MESSAGE_TOO_LARGE, f"The images have more than {MAX_IMAGE_BYTES} bytes - at `$.message`.")
    for place, part in enumerate(message):
        if isinstance(part, ImagePart):
            _check_image(part, f"$.message[{place}].image_url")
    # some providers refuse a text part that is empty
    return [_plain(part) for part in message if isinstance(part, ImagePart) or part.text.strip()]


def _carries(part: ImagePart) -> bool:
    return part.image_url.url[:5].lower() == "data:"


def _check_image(part: ImagePart, at: str) -> None:
    url, detail = part.image_url.url, part.image_url.detail
    if detail is not None and not DETAIL.fullmatch(detail):
        raise Fault(Code.INVALID_MESSAGE, f"Expected a word such as auto, low or high - at `{at}.detail`.")
    if _carries(part):
        if not _is_image(url):
            raise Fault(Code.INVALID_MESSAGE, f"Expected `data:image/...;base64,` and an image - at `{at}.url`.")
        return
    if len(url) > MAX_URL_CHARS:
        raise Fault(Code.MESSAGE_TOO_LARGE, f"The address is longer than {MAX_URL_CHARS} characters - at `{at}.url`.")
    try:
        parts = urlsplit(url)
        fine = parts.scheme == "https" and bool(parts.hostname)
    except ValueError:  # brackets that make no address
        fine = False
    if not fine or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise Fault(Code.INVALID_MESSAGE, f"Expected an https address or a data URI of an image - at `{at}.url`.")


def _is_image(url: str) -> bool:
    begin = DATA_URI.match(url)
    if begin is None:
        return False
    try:
        return bool(binascii.a2b_base64(url[begin.end() :], strict_mode=True))
    except ValueError:  # characters that are not of base64, not even ASCII, or bad padding
        return False


def _plain(part: TextPart | ImagePart) -> dict[str, Any]:
    """A `detail` that was not given is left out, since some providers refuse null."""
    plain: dict[str, Any] = msgspec.to_builtins(part)
    if isinstance(part, ImagePart) and part.image_url.detail is None:
        del plain["image_url"]["detail"]
    return plain


def has_images(content: Content) -> bool:
    """It needs a model that can see."""
    return not isinstance(content, str) and any(part.get("type") == "image_url" for part in content)


def image_bytes(content: Content) -> int:
    """Bytes of the images that it carries."""
    if isinstance(content, str):
        return 0
    return sum(len(part["image_url"]["url"]) for part in content if part.get("type") == "image_url")


def lightened(events: Sequence[Event], most_bytes: int = TOLD_BYTES) -> list[Event]:
    """The events as a model is told them: without what only clients see, and with words in the place of the oldest
    images where all have more bytes than a request should."""
    found: list[Event] = []
    total = 0
    for event in reversed(events):
        if isinstance(event, UserEvent) and (carried := image_bytes(event.content)):
            total += carried
            if total > most_bytes:
                event = msgspec.structs.replace(event, content=in_words(event.content, IMAGE_PAST))
        elif isinstance(event, ToolEnded) and (event.contents or event.structured is not None):
            event = msgspec.structs.replace(event, contents=[], structured=None)  # for clients; the store has it
        found.append(event)
    return found[::-1]


def recent(events: list[Event], turns: int, spare: int) -> list[Event]:
    """Of more turns than that and the spare ones the last: many go at a time, since providers remember beginnings."""
    starts = [place for place, event in enumerate(events) if isinstance(event, UserEvent)]
    return events[starts[-turns] :] if len(starts) > turns + spare else events


def refusal(content: Content, provider: Provider | None) -> Fault | None:
    """Why that provider cannot be told a message; None: it can."""
    if provider is None or provider.client.vision or not has_images(content):
        return None
    return Fault(
        Code.LLM_REJECTED,
        f"{provider.name}: the model {provider.model} reads text only, the message has images.",
        hint="Send it without images, or choose a provider that can see (llm.active).",
    )


def in_words(content: Content, image: str = IMAGE_GONE) -> str:
    """A message as text, with words in the place of each image."""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") if part.get("type") == "text" else image for part in content)
