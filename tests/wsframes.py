"""The JSON frames in a server's raw bytes, read by the library that we did not use to write them."""

from __future__ import annotations

import json
from typing import Any

from wsproto.frame_protocol import FrameProtocol, Opcode


def decoded(data: bytes) -> list[dict[str, Any]]:
    """Every frame, which must be a whole, unmasked text message holding a JSON object."""
    reader = FrameProtocol(client=True, extensions=[])
    reader.receive_bytes(data)
    found: list[dict[str, Any]] = []
    text = ""
    whole = True
    for frame in reader.received_frames():
        assert frame.opcode is Opcode.TEXT
        assert isinstance(frame.payload, str)
        text += frame.payload  # the library hands out a large frame in parts
        whole = frame.message_finished
        if whole:
            value = json.loads(text)
            assert isinstance(value, dict)
            found.append(value)
            text = ""
    assert whole, "bytes of half a frame"
    return found
