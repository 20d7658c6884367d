"""Parts of what an MCP server gives: of a tool's result, a resource, a prompt; in one form for store and clients.

What is too large to be carried along is kept as a file of its conversation (`actors/kept_results.py`), under an id
that means nothing in any other conversation. Sizes are bytes of the text in UTF-8, or of the decoded data.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

SHOWN_CHARS = 16_384  # of a tool's text in a client's frame; the model gets more of it
RESULT_ID = re.compile(r"[tb]-[0-9a-f]{32}")  # of what is kept: text, or bytes


class Content(msgspec.Struct, frozen=True, omit_defaults=True):
    """One part."""

    type: str
    """text, image, audio, resource, resource_link or structured (JSON); what else a server says is named as it is."""
    size: int = 0
    """Of the whole, whatever is given of it here."""
    text: str | None = None
    """None: it is not text, or is not given here."""
    data: str | None = None
    """Base64 of what is not text; None: it is text, or is not given here."""
    result_id: str = ""
    """The whole is not given here, and can be asked for by this id; `text` is its beginning, if it is text."""
    mime_type: str = ""
    uri: str = ""
    """Of a resource, or of a link to one."""
    name: str = ""
    title: str = ""
    description: str = ""
    icons: list[dict[str, Any]] = []
    annotations: dict[str, Any] = {}
    """For whom it is, how important, how old; as the server said."""
    meta: dict[str, Any] = {}
    """`_meta`, as the server said."""
