"""Who floods is read a tenth of a core's worth, in small pieces; whoever does not is never slowed down."""

from __future__ import annotations

import sys

import pytest

from actors.allowance import BURST, BYTES_S, LEAST, MESSAGE, MOST, PIECE, Allowance
from actors.stdio import Command, running


def flood(size: int, messages: int, seconds: float) -> tuple[float, list[int]]:
    """Weight that is read of who always has more, in that time, and the sizes of the reads; `messages` in `size`."""
    allowance, now, weight, reads = Allowance(0.0), 0.0, 0.0, list[int]()
    while True:
        most = allowance.most
        now += allowance.wait_s(now)
        if now > seconds:
            return weight, reads
        ends = round(most * messages / size)
        allowance.read(most, ends)
        weight += most + ends * MESSAGE
        reads.append(most)


@pytest.mark.parametrize(("size", "messages"), [(50_000_000, 1), (250, 1), (60, 1)])
def test_a_flood_is_read_at_its_rate_after_a_burst(size: int, messages: int) -> None:
    weight, reads = flood(size, messages, 10.0)
    one = max(reads) * (1 + MESSAGE * messages / size)  # the last read of the burst may be any
    assert BURST + 9.9 * BYTES_S <= weight <= BURST + 10.1 * BYTES_S + one
    assert max(reads) == MOST
    assert all(read * (1 + MESSAGE * messages / size) <= max(PIECE, LEAST * MESSAGE) for read in reads[-100:])


def test_whoever_says_less_is_read_at_once() -> None:
    allowance = Allowance(0.0)
    for second in range(100):
        assert allowance.wait_s(float(second)) == 0
        assert allowance.most == MOST
        allowance.read(int(BYTES_S / 2), int(BYTES_S / 2 / MESSAGE))


async def test_a_server_that_floods_its_output_gets_to_say_little_at_a_time() -> None:
    code = "import sys\nline = b'x' * 99 + b'\\n'\nwhile True: sys.stdout.buffer.write(line * 100)"
    said, later = list[int](), list[int]()
    async with running(Command(name="x", argv=(sys.executable, "-S", "-c", code), cwd="/", env={})) as process:
        while sum(said) < BURST / MESSAGE:
            said.append(len(await process.lines()))
        while len(later) < 10:
            later.append(len(await process.lines()))
    assert max(said) > 10 * PIECE / MESSAGE  # at first all that is there
    assert max(later[1:]) <= 2 * PIECE / MESSAGE
