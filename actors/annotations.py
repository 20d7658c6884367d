"""What a turn's answer refers to: the annotations of its single answers, in the places of the whole text.

Pure. An annotation is a provider's, `{type: url_citation, url_citation: {url, title?, start_index?, end_index?}}` as a
rule; its indexes count characters of the one answer that it came with, while a client gets the text of all answers
of the turn, joined.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from protocol.writer import Event, HopEvent

INDEXES = ("start_index", "end_index")


def annotations_of(events: Iterable[Event]) -> list[dict[str, Any]]:
    """The annotations of all answers, in order, with indexes of the joined text."""
    found: list[dict[str, Any]] = []
    offset = 0
    for event in events:
        if isinstance(event, HopEvent):
            found += [moved(annotation, offset) for annotation in event.annotations]
            offset += len(event.content)
    return found


def moved(annotation: dict[str, Any], by: int) -> dict[str, Any]:
    """An annotation of a text that stands that much further back; one level down too, where providers put them."""
    return {
        key: value + by
        if key in INDEXES and isinstance(value, int) and not isinstance(value, bool)
        else moved(value, by)
        if isinstance(value, dict)
        else value
        for key, value in annotation.items()
    }
