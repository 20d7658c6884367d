"""Addresses that an answer names beside its message, as annotations of the message; free of I/O.

Some providers put `citations` (a list of addresses) and `search_results` (what was found there) beside the
choices instead of `annotations` into the message, and repeat both in every chunk: they are kept undecoded
until the end. Nothing here can fail: what has another form than expected is no citation.
"""

from __future__ import annotations

from typing import Any

import msgspec

NONE = msgspec.Raw()
"""Nothing was said."""


def cited(citations: msgspec.Raw, results: msgspec.Raw) -> list[dict[str, Any]]:
    """`{"type": "url_citation", "url_citation": {"url": ..., "title"?: ...}}` for each address, in order."""
    found = [item for item in _list(results) if isinstance(item, dict) and isinstance(item.get("url"), str)]
    titles = {item["url"]: item.get("title") for item in found}
    addresses = [item for item in _list(citations) if isinstance(item, str)] or list(titles)
    return [
        {"type": "url_citation", "url_citation": {"url": url} | ({"title": titles[url]} if titles.get(url) else {})}
        for url in addresses
    ]


def _list(text: msgspec.Raw) -> list[Any]:
    try:
        value = msgspec.json.decode(text) if text else []
    except ValueError:
        return []  # strings that are no UTF-8 stay unread until here
    return value if isinstance(value, list) else []
