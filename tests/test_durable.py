"""What must be stored is tried again until it is, and the log is not filled with it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio

from actors.durable import insist
from protocol.errors import Code, Fault
from protocol.mail import Mailbox, Ref
from protocol.writer import Append
from tests.stores import closed
from tests.test_mail import Post

FULL = 20  # tries that the store refuses


@pytest.mark.autojump
async def test_a_full_disk_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    box: Mailbox[Any] = Mailbox("store")
    append = Append("c", 3, "closed", [closed()], "")
    with caplog.at_level(logging.INFO, "actors.session"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(insist, Ref(Post(box), "store"), append)
            for number in range(FULL + 1):
                assert await anext(box) is append
                box.settle(box.reply_slot, "stored" if number == FULL else Fault(Code.STORAGE_FULL))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "turn 3 of c is not stored yet",
        "turn 3 of c is stored now",
    ]
