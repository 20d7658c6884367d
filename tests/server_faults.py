"""What an MCP server can do wrong, and what then the model, the client and the operator see: one row each.

A row reads: the server that misbehaves so (`tests/odd_servers.py`) is called once in a turn, beside a healthy one;
`tests/test_server_faults.py` runs all rows in one service, and compares. The table has a row for every fault of the
list in the issue; `test_every_fault_of_the_list_has_a_row` says which. Faults of servers behind a URL are in
tests/test_mcp_http.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LATE_S = 1.5  # the timeout of servers that let a call run into it


@dataclass(frozen=True)
class Fault:
    """One server."""

    what: str
    mode: str
    """Of the odd server; its name too, unless there are several of a mode."""
    model: str
    """What the model reads as the tool's result: how it begins, or holds where it has a `…` before it."""
    tool: str = "hello"
    arguments: dict[str, Any] = field(default_factory=dict)
    argument: str = ""
    """Of the mode; `{folder}` is a folder of the test, `{count}` the full number or, in the suite, a twentieth."""
    entry: dict[str, Any] = field(default_factory=dict)
    """More of the server's entry."""
    client: str = "completed"
    """Status of the `tool_execution` that ends the call."""
    died: str = ""
    """Why the actor failed, in its status: then the client is told `degraded` too, and `recovered` if it comes back."""
    stays_down: bool = False
    """It is parked in the end, and its tools are not offered."""
    facts: dict[str, Any] = field(default_factory=dict)
    """In its status afterwards."""
    log: str = ""
    """In the log."""
    then: str = "hello"
    """What the same tool gives in the next turn, or another one that does not fail; empty: the fault is for good."""
    model_tools: tuple[str, ...] | None = None
    """The names under which the model is offered its tools; None: those of every odd server."""
    count: int = 0

    @property
    def server(self) -> str:
        """Its name."""
        return self.what.replace(" ", "_")


STOPPED = "MCP_SERVER_UNAVAILABLE: The tool server"
SILENT = f"…gave no sign of life for {LATE_S:g} s"

FAULTS = [
    Fault(
        "dies idle",
        "dies_idle",
        "TOOL_NOT_FOUND",
        client="failed",
        died="ended with exit code 5. Its last words: tired of waiting",
        stays_down=True,
        facts={"last_exit_code": 5},
        then="",
    ),
    Fault(
        "dies in a call",
        "normal",
        STOPPED,
        tool="die",
        client="failed",
        died="ended with exit code 7. Its last words: dying in the call",
        facts={"last_exit_code": 7, "state": "ready"},
    ),
    Fault(
        "never answers",
        "normal",
        SILENT,
        tool="hang",
        entry={"timeout": LATE_S},
        client="failed",
        facts={"failures": 1, "breaker": "closed"},
    ),
    Fault("ignores discover", "ignores_discover", "hello", argument="{folder}/seen", facts={"era": "legacy"}),
    Fault("garbage", "garbage", "hello", facts={"skipped_lines": 10}, log="skipped a line of an MCP server"),
    Fault(
        "invalid UTF-8",
        "unreadable",
        "its answer is not valid JSON-RPC",
        client="failed",
        facts={"skipped_lines": 1},
        then="",
    ),
    Fault(
        "half a line",
        "half_line",
        STOPPED,
        client="failed",
        died="ended with exit code 3",
        facts={"last_exit_code": 3},
        then="",
    ),
    Fault(
        "stops reading while 1 MB is written",
        "stops_reading",
        SILENT,
        arguments={"who": "x" * 1_000_000},
        entry={"timeout": LATE_S},
        client="failed",
        facts={"failures": 1},
        then="",
    ),
    Fault("50 MB result", "big", "xxxxx", argument="50000000", then=""),
    Fault(
        "50 MB over the line limit",
        "big",
        "its answer has 50000",
        argument="50000000",
        entry={"limits": {"line_bytes": 1_000_000}},
        client="failed",
        facts={"skipped_lines": 1},
        log="more than a message may have",
        then="",
    ),
    Fault("20 MB on standard error", "flood", "hello", facts={"stderr": "e" * 300}),
    Fault("20,000 notifications at once", "notifies", "hello", argument="{count}", count=20_000),
    Fault("ignores SIGTERM", "stubborn", "hello", argument="{folder}/stubborn"),
    Fault("forks a grandchild", "forking", "hello", argument="{folder}/forking"),
    Fault(
        "empty inputSchema",
        "bad_schemas",
        "hello",
        tool="empty",
        facts={"tools": 7},
        log="3 tools have a schema that is none of an object; it was repaired: empty, none, text",
        model_tools=("count", "die", "empty", "hang", "hello", "none", "text"),
    ),
    Fault("duplicate tool names", "twice", "hello", facts={"tools": 4}),
    Fault(
        "200-character names",
        "long_names",
        "a 200",
        tool="a" * 200,
        then="a 200",
        model_tools=("a" * 200, "b" * 200),
    ),
    Fault(
        "structured output that does not match",
        "lies",
        "The tool's structured result does not fit its output schema",
        client="failed",
        facts={"results_against_schema": 1},
        log="does not fit its output schema: 'many' is not of type 'integer'",
        then="",
    ),
    Fault(
        "tool list that changes in a turn",
        "changing",
        "hello",
        model_tools=("count", "die", "hang", "hello", "later", "later"),
    ),
]
