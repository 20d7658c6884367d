"""The layers of the configuration: YAML texts with the line of every key.

The only importer of yaml, and only of its safe parser: nodes are built into plain values here, so that every
key keeps its line, a key that is there twice is noticed, and what could not travel on (numbers past 64 bits,
infinities, half of a surrogate pair) is refused where it stands. Scalars are read as YAML 1.2 does, with
yes/no/on/off as well: `1e-3` is a number and `2026-01-01` is text.

Fails with `ConfigurationError` only; each of its lines says file, line, column, what, and a hint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from actors.trees import Path, Tree, deep_merge, written

MOST_NODES = 20_000  # a configuration has hundreds; aliases can multiply a small file past any memory
DEEPEST = 64  # levels of nesting, well inside Python's recursion limit


class ConfigurationError(Exception):
    """A configuration is not usable; `problems` has a line for each thing that is wrong, for the operator."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Layer:
    """One source of the configuration."""

    name: str
    """How messages call it: the file's name, or `command line`."""
    data: Tree
    lines: dict[Path, int] = field(default_factory=dict)
    """Line of each key, from 1; empty where there are no lines."""
    warnings: list[str] = field(default_factory=list)
    """What was strange in the text and yet has a meaning."""
    text: str = ""
    """The text that this was read from."""


def place(layers: Sequence[Layer], path: Path) -> str:
    """`file:line` of a path in the topmost layer that has it, else of the nearest thing above it."""
    for depth in range(len(path), -1, -1):
        for layer in reversed(layers):
            if path[:depth] in layer.lines:
                return f"{layer.name}:{layer.lines[path[:depth]]}"
            if depth and not layer.lines and _has(layer.data, path[:depth]):
                return layer.name
    return layers[-1].name


def _has(tree: object, path: Path) -> bool:
    for part in path:
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def parse(text: str, name: str) -> Layer:
    """Read one YAML text. Raises ConfigurationError naming file, line and column.

    A text without any key is an error too: it is what a file looks like while it is being written.
    `{}` says on purpose that nothing is overridden.
    """
    builder = _Builder(name)
    try:
        # _Loader is a SafeLoader; compose makes nodes only, no objects of any kind.
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigurationError([_syntax(name, text, error)]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigurationError(
            [f"{name}:{line}: the character {error.character!r} is not allowed in YAML, remove it"]
        ) from None
    except RecursionError:
        raise ConfigurationError([f"{name}: is nested too deeply"]) from None
    if root is None:
        raise ConfigurationError([f"{name}:1: is empty; write {{}} into it to run on the defaults"])
    if not isinstance(root, yaml.MappingNode):
        raise ConfigurationError([f"{name}:{_line(root)}: must be a mapping of keys such as `chat:` and `llm:`"])
    data = builder.mapping(root, (), ())
    return Layer(name, data, builder.lines, builder.warnings, text)


def json_lines(text: str) -> dict[Path, int]:
    """The line of every key of a valid JSON text; empty where YAML reads it differently."""
    builder = _Builder("")
    try:
        # JSON is YAML but for tabs between tokens; inside of strings JSON has none.
        root = yaml.compose(text.replace("\t", " "), Loader=_Loader)
        if isinstance(root, yaml.MappingNode):
            builder.mapping(root, (), ())
    except (yaml.YAMLError, ConfigurationError, RecursionError):
        return {}  # lines are a comfort of messages; the JSON itself was read by the json module
    return builder.lines


def parse_value(text: str) -> Any:
    """One YAML value, as it would be read behind a key. Raises ConfigurationError."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        if isinstance(error, yaml.MarkedYAMLError):
            raise ConfigurationError([_syntax("value", text, error)]) from None
        raise ConfigurationError(["value: holds a character that is not allowed in YAML"]) from None
    except RecursionError:
        raise ConfigurationError(["value: is nested too deeply"]) from None
    return None if node is None else _Builder("value").value(node, (), ())


def dump(tree: Any) -> str:
    """YAML text that `parse` reads back as the same values; keys stay in order. Raises ConfigurationError."""
    try:
        return str(yaml.dump(tree, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=100))
    except yaml.representer.RepresenterError:
        raise ConfigurationError(["given configuration: holds a value that no file can hold"]) from None


class _Builder:
    """Makes plain values of nodes, keeping the line of every key."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Path, int] = {(): 1}
        self.warnings: list[str] = []
        self._nodes = 0

    def mapping(self, node: yaml.MappingNode, path: Path, above: tuple[yaml.Node, ...]) -> Tree:
        """One mapping; merge keys (`<<`) first, so that its own keys win."""
        self._enter(node, above)
        above = (*above, node)
        tree: Tree = {}
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(source, yaml.MappingNode):
                        raise self._refuse(value, "`<<` needs a mapping")
                    tree = {**self.mapping(source, path, above), **tree}
        seen: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise self._refuse(key, "a key must be plain text")
            # Keys of JSON objects are text whatever they look like: logit_bias has numbers, YAML 1.1 has `on`.
            name = self._text(key)
            here = (*path, name)
            known = seen.get(name)
            self.lines[here] = seen[name] = _line(key)
            built = self.value(value, here, above)
            if known is not None:
                both = isinstance(built, dict) and isinstance(tree[name], dict)
                how = "both were joined" if both else "the later one counts"
                self.warnings.append(
                    f"{self.name}:{_line(key)}: {written(here)}: is there twice (first on line {known}); {how}"
                )
                built = deep_merge(tree[name], built, here) if both else built
            tree[name] = built
        return tree

    def value(self, node: yaml.Node, path: Path, above: tuple[yaml.Node, ...]) -> Any:
        """Any node as a plain value."""
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, above)
        if isinstance(node, yaml.SequenceNode):
            self._enter(node, above)
            values = []
            for position, item in enumerate(node.value):
                self.lines[(*path, position)] = _line(item)
                values.append(self.value(item, (*path, position), (*above, node)))
            return values
        self._enter(node, above)
        return self._scalar(node)

    def _enter(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> None:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise self._refuse(node, f"more than {MOST_NODES} values, aliases counted; is this a configuration?")
        if len(above) > DEEPEST or node in above:
            raise self._refuse(node, "is nested too deeply, or contains itself")
        if node.tag not in _ALLOWED[type(node)]:
            raise self._refuse(node, f"the tag {node.tag.replace(_TAG, '!!')} is not allowed here, remove it")

    def _scalar(self, node: yaml.Node) -> str | int | float | bool | None:
        text = self._text(node)
        kind = node.tag.removeprefix(_TAG)
        try:
            if kind == "int":
                return self._whole(node, int(text.replace("_", ""), 0))
            if kind == "float":
                return self._finite(node, float(re.sub(r"\.(?=inf|nan)", "", text.lower())))
        except ValueError:
            raise self._refuse(node, "is not a number that can be read") from None
        if kind == "bool":
            return text.lower() in ("true", "yes", "on")
        return None if kind == "null" else text

    def _whole(self, node: yaml.Node, value: int) -> int:
        if not -(2**63) <= value < 2**64:
            raise self._refuse(node, "is a number past 64 bits, which cannot be sent on")
        return value

    def _finite(self, node: yaml.Node, value: float) -> float:
        if not math.isfinite(value):
            raise self._refuse(node, "is not a finite number, which cannot be sent on")
        return value

    def _text(self, node: yaml.Node) -> str:
        try:
            # The parser leaves "\ud83d\ude00" as two halves; a half alone can be neither stored nor sent.
            return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self._refuse(node, "holds half of a \\u surrogate pair, write the character itself") from None

    def _refuse(self, node: yaml.Node, what: str) -> ConfigurationError:
        mark = node.start_mark
        return ConfigurationError([f"{self.name}:{mark.line + 1}:{mark.column + 1}: {what}"])


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


# Beginnings of the parser's words, and ours with a hint; the first that fits counts.
_SYNTAX = (
    ("found character '\\t'", "a tab, where YAML allows only spaces; replace it by spaces"),
    ("found unexpected end of stream", "the file ends inside a quoted text; is it truncated?"),
    ("could not find expected ':'", "a key without a colon; is the file truncated?"),
    ("mapping values are not allowed here", "a second `: ` here; put the text in quotes, or correct the indentation"),
    ("expected <block end>", "the indentation does not fit the lines above; align it with its section"),
    ("expected a single document", "a second document (`---`); only one is allowed"),
    ("but found another document", "a second document (`---`); only one is allowed"),
    ("found undefined alias", "an alias (`*name`) without its anchor; put the text in quotes if it is none"),
    ("found character", "a character that cannot begin a value; put the text in quotes"),
)


def _syntax(name: str, text: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    problem = error.problem or "is not YAML"
    for beginning, words in _SYNTAX:
        if problem.startswith(beginning):
            return f"{where}: {words}"
    if "<stream end>" in problem:
        return f"{where}: the file ends inside a `{{` or `[`; is it truncated?"
    return f"{where}: {problem}; see the lines above it"


_TAG = "tag:yaml.org,2002:"
_ALLOWED: dict[type[yaml.Node], frozenset[str]] = {
    yaml.MappingNode: frozenset({_TAG + "map"}),
    yaml.SequenceNode: frozenset({_TAG + "seq"}),
    yaml.ScalarNode: frozenset(_TAG + kind for kind in ("str", "int", "float", "bool", "null")),
}
# Plain scalars: kind, form, possible first characters.
_SCALARS = (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", [*"yYnNtTfFoO"]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?|"
        r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        [*"-+0123456789."],
    ),
    ("merge", r"<<", ["<"]),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own declaration of it


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # as above


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Double quotes escape the rare line ends that the emitter would fold wrongly; prompts are read in blocks.
    rare = any(end in text for end in "\r\x85\u2028\u2029\ufeff")
    return dumper.represent_scalar(_TAG + "str", text, style='"' if rare else "|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
for _kind, _form, _first in _SCALARS:
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_form})\Z"), _first)
