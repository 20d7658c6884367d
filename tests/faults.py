"""The fault matrix: every actor, every message of its vocabulary, and what a client then must see.

A row reads: this actor raises when it is about to handle this message (for the nth time) while `provoke`
happens; the turn that runs then ends with `outcome`. `tests/test_faults.py` runs each row against the whole
product, and asserts that there is a row for every actor of the tree and every message of its vocabulary.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any

from protocol import gateway, local_model, logs, mcp_server, reporter, roster, session, streamer, watcher, writer

VOCABULARY: dict[str, Any] = {
    "watcher": watcher.WatcherMessage,
    "logs": logs.LogsMessage,
    "reporter": reporter.ReporterMessage,
    "store/writer": writer.WriterMessage,
    "llm/local": local_model.LocalModelMessage,
    "llm/streamer": streamer.StreamerMessage,
    "mcp/demo": mcp_server.McpServerMessage,
    "roster": roster.RosterMessage,
    "front/gateway": gateway.GatewayMessage,
    "front/sessions/*": session.SessionMessage,
}
"""Every actor of the tree (`*`: one per conversation), and the union of what it understands."""


@dataclass(frozen=True)
class Row:
    """One fault."""

    actor: str
    message: str
    provoke: str = "answer"
    """Which of `tests/test_faults.py`'s scenes: it makes sure that the message comes."""
    outcome: str = "completed"
    """Of the turn that runs while it happens."""
    nth: int = 1
    """Which message of that kind."""
    notice: bool = True
    """Sockets are told `degraded` and `recovered`."""

    @property
    def name(self) -> str:
        """For the test's id."""
        return f"{self.actor}-{self.message}-{self.provoke}-{self.nth}"


ROWS = [
    # The store: nothing is noticed, every operation is sent again.
    Row("store/writer", "Enter", "connect"),
    Row("store/writer", "BeginTurn"),
    Row("store/writer", "StartTurn", "queue"),
    Row("store/writer", "Append"),
    Row("store/writer", "Append", "tool", nth=2),
    Row("store/writer", "AppendDeltas", "slow"),
    Row("store/writer", "LoadHistory"),
    Row("store/writer", "ListUnfinished", "ready"),
    Row("store/writer", "TakeUnfinished", "take unfinished"),
    Row("store/writer", "Release", "release"),
    Row("store/writer", "FrontGone", "front gone"),
    Row("store/writer", "Down", "front down"),
    Row("store/writer", "Up", "front up"),
    Row("store/writer", "SaveSession", "save"),
    Row("store/writer", "ListSaved", "list saved"),
    Row("store/writer", "ReadSaved", "read saved"),
    Row("store/writer", "LoadSaved", "load saved"),
    Row("store/writer", "DeleteSaved", "delete saved"),
    Row("store/writer", "ListConversations", "list conversations"),
    Row("store/writer", "InUse", "in use"),
    Row("store/writer", "OpenPending", "open pending"),
    Row("store/writer", "DecidePending", "decide pending"),
    Row("store/writer", "CancelPending", "cancel pending"),
    Row("store/writer", "ExpirePending", "expire pending"),
    Row("store/writer", "DropGrant", "drop grant"),
    Row("store/writer", "ReadPending", "read pending"),
    Row("store/writer", "ListPending", "connect"),
    Row("store/writer", "ListGrants", "list grants"),
    Row("store/writer", "WatchPending", "watch pending"),
    Row("store/writer", "CheckTools", "check tools"),
    Row("store/writer", "OnlyServers", "only servers"),
    Row("store/writer", "Configured", "configure"),
    Row("store/writer", "Nudge", "nudge"),
    # The streamer: asked again while nothing was shown, interrupted after that.
    Row("llm/streamer", "Complete"),
    Row("llm/streamer", "Complete", "tool", outcome="interrupted", nth=2),
    Row("llm/streamer", "Cancel", "stop", outcome="stopped"),
    Row("llm/streamer", "Configured", "configure", outcome="interrupted"),
    Row("llm/streamer", "ListModels", "list models", outcome="interrupted"),
    Row("llm/streamer", "Down", "asker down", outcome="interrupted"),
    Row("llm/streamer", "Up", "asker up", outcome="interrupted"),
    Row("llm/streamer", "Nudge", "nudge", outcome="interrupted"),
    # A tool server: its call fails, the turn goes on.
    Row("mcp/demo", "CallTool", "tool"),
    Row("mcp/demo", "CancelCall", "stop tool", outcome="stopped"),
    Row("mcp/demo", "Down", "gateway down"),
    Row("mcp/demo", "Up", "gateway up"),
    Row("mcp/demo", "ReadResource", "read resource"),
    Row("mcp/demo", "GetPrompt", "get prompt"),
    Row("mcp/demo", "CompleteArgument", "complete"),
    Row("mcp/demo", "SubscribeResource", "subscribe to a resource"),
    Row("mcp/demo", "UnsubscribeResource", "unsubscribe from a resource"),
    Row("mcp/demo", "AnswerQuestion", "answer question"),
    Row("mcp/demo", "AnswerSampling", "answer sampling"),
    Row("mcp/demo", "SetServerLog", "server log"),
    Row("mcp/demo", "TellTools", "tell tools"),
    Row("mcp/demo", "PendingSettled", "tool settled"),
    Row("mcp/demo", "PinningChanged", "pinning changed"),
    Row("mcp/demo", "Nudge", "nudge"),
    # The gateway: turns of the batch in hand have a gap; all else goes on.
    Row("front/gateway", "Pieces"),
    Row("front/gateway", "Pieces", "slow", outcome="interrupted", nth=2),
    Row("front/gateway", "ToolProgress", "tool"),
    Row("front/gateway", "Catalogue", "catalogue"),
    Row("front/gateway", "Resting", "resting"),
    Row("front/gateway", "ResourceUpdated", "resource updated"),
    Row("front/gateway", "UserQuestion", "user question"),
    Row("front/gateway", "SamplingRequest", "sampling"),
    Row("front/gateway", "RequestEnded", "request ended"),
    Row("front/gateway", "UrlVisited", "url visited"),
    Row("front/gateway", "PendingOpened", "open pending"),
    Row("front/gateway", "PendingSettled", "settle pending"),
    Row("front/gateway", "Configured", "configure"),
    Row("front/gateway", "Down", "roster down"),
    Row("front/gateway", "Up", "roster up"),
    Row("front/gateway", "StopTaking", "drain"),
    Row("front/gateway", "GetFigures", "figures"),
    Row("front/gateway", "Nudge", "nudge"),
    # A session: its message is taken up again; a turn that has shown something is closed from its log.
    Row("front/sessions/*", "Say"),
    Row("front/sessions/*", "Say", "queue", outcome="interrupted", nth=2),
    Row("front/sessions/*", "Stop", "stop", outcome="interrupted"),
    Row("front/sessions/*", "Drain", "drain", outcome="interrupted"),
    Row("front/sessions/*", "Nudge", "nudge", outcome="interrupted"),
    # Those that no turn goes through.
    Row("watcher", "GetSnapshot", "snapshot"),
    Row("watcher", "Subscribe", "subscribe"),
    Row("watcher", "SetLocalModel", "local"),
    Row("watcher", "GetConfig", "read the configuration"),
    Row("watcher", "SetConfig", "change the configuration"),
    Row("watcher", "ListVersions", "list versions"),
    Row("watcher", "Rollback", "roll back"),
    Row("watcher", "Nudge", "nudge"),
    Row("reporter", "GetStatus", "status"),
    Row("reporter", "RestartPart", "restart"),
    Row("reporter", "Nudge", "nudge"),
    Row("logs", "Configured", "configure"),
    Row("logs", "Nudge", "nudge"),
    Row("roster", "Configured", "configure"),
    Row("roster", "Nudge", "nudge"),
    Row("llm/local", "Configured", "configure"),
    Row("llm/local", "Down", "watcher down"),
    Row("llm/local", "Up", "watcher up"),
    Row("llm/local", "Nudge", "nudge"),
]


def words(actor: str) -> set[str]:
    """Names of the messages that an actor understands."""
    return {message.__name__ for message in typing.get_args(VOCABULARY[actor])}
