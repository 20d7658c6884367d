"""What a process wrote before it died begins with the line that says why."""

from __future__ import annotations

import pytest

from actors.last_words import telling_first

PYTHON = """starting
Traceback (most recent call last):
  File "server.py", line 26, in <module>
    newer = sys.argv[1] == "newer"
            ~~~~~~~~^^^
IndexError: list index out of range
"""
NODE = """file:///srv/index.js:3
throw new Error("no token");
      ^

Error: no token
    at file:///srv/index.js:3:7
    at ModuleJob.run (node:internal/modules/esm/module_job:195:25)

Node.js v20.20.2
"""


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (PYTHON, "IndexError: list index out of range"),
        (NODE, "Error: no token"),
        ("one line\n", "one line"),
        ("    indented only\n    twice", "    twice"),
        (" \n\n", ""),
        ("", ""),
        ("Node.js v20.20.2", "Node.js v20.20.2"),
    ],
)
def test_the_line_that_says_why_is_the_first(text: str, first: str) -> None:
    found = telling_first(text)
    assert found.partition("\n")[0] == first
    assert sorted(found.splitlines()) == sorted(text.strip("\r\n").splitlines()) or not first
