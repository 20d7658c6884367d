"""Whoever asks for the state of the service gets it, also after the reporter failed once."""

from __future__ import annotations

import pytest
import trio

from protocol.mail import Gone
from protocol.reporter import GetStatus
from protocol.spec import Child, Group
from supervisors.supervisor import running


async def test_it_answers_and_comes_back() -> None:
    answers: list[bytes | Exception] = [b"one", ValueError("no tree"), b"two"]

    async def status() -> bytes:
        await trio.lowlevel.checkpoint()
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with running(Group("root", (Child("reporter", "supervisors.reporter:run", args={"status": status}),))) as t:
        reporter = t.ref("reporter")
        reporter.nudge()
        assert await reporter.ask(GetStatus(), within=5) == b"one"
        with pytest.raises(Gone):
            await reporter.ask(GetStatus(), within=5)
        assert await reporter.ask(GetStatus(), within=5, again=True) == b"two"
