"""What a process that died wrote to its standard error, with the line that says why in front.

Logs and `status` show one line of an error. Stacks are long, and what happened stands above them (node) or below
them (Python), never in the first line. Pure; what cannot be recognised begins with its last line.
"""

from __future__ import annotations

import re

FOOTER = re.compile(r"Node\.js v\d|note: run with `RUST_BACKTRACE")  # below a stack, and says nothing of it


def telling_first(text: str) -> str:
    """The text, with the line that says why in front of all others: the last one that belongs to no stack."""
    lines = text.strip("\r\n").splitlines()
    said = [number for number, line in enumerate(lines) if line.strip() and not FOOTER.match(line)]
    flush = [number for number in said if not lines[number][0].isspace()]  # the lines of a stack are indented
    if not said:
        return text.strip()
    telling = (flush or said)[-1]
    return "\n".join([lines[telling], *lines[:telling], *lines[telling + 1 :]])
