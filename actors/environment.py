"""What `.env` files add to the environment, where the keys of providers are. The only importer of dotenv.

They are read once, at the start. What is wrong with them is told by line, and never quoted: where a line is not
as it should be, a key may stand anywhere in it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import dotenv
import dotenv.parser


class Found(NamedTuple):
    """What the files say."""

    values: Mapping[str, str]
    """The first file that has a name decides."""
    problems: list[str]
    """A line each, for operators."""


def load_environment(cwd: str | Path, state_dir: str | Path) -> list[str]:
    """Take `.env` of the working directory, then of the state directory, into the environment.

    What is in the environment already wins. Returns what is wrong with the files.
    """
    found = read_environment(cwd, state_dir)
    for name, value in found.values.items():
        os.environ.setdefault(name, value)
    return found.problems


def read_environment(cwd: str | Path, state_dir: str | Path) -> Found:
    """What those files say; changes nothing. A line, or a file, that cannot be read is left out."""
    values: dict[str, str] = {}
    problems: list[str] = []
    for path in dict.fromkeys((Path(cwd).resolve() / ".env", Path(state_dir).resolve() / ".env")):
        try:
            if not path.is_file():
                continue  # some keep a directory of that name for other things
            lines = [*dotenv.parser.parse_stream(io.StringIO(path.read_text("utf-8")))]
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path}: was not read ({getattr(error, 'strerror', None) or 'it is not UTF-8'})")
            continue
        for line in lines:
            if line.error or (line.key is not None and line.value is None):
                first = line.original.line + _blank_lines(line.original.string)
                problems.append(f"{path}:{first}: is not NAME=value, and was left out")
        # Again without those: the library would tell them in its own way, and knows how values refer to others.
        good = "".join(line.original.string for line in lines if not line.error)
        for name, value in dotenv.dotenv_values(stream=io.StringIO(good)).items():
            if value is not None:
                values.setdefault(name, value)
    return Found(values, problems)


def _blank_lines(text: str) -> int:
    return text[: len(text) - len(text.lstrip())].count("\n")
