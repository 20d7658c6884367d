"""What can go wrong with an MCP server as a whole; failures of single calls are `Fault`s.

`Unusable` parks the server's actor, the others restart it. Texts are for operators: what happened, where,
what to do. They hold no secret: what a server wrote is quoted with its configured values blacked out.
"""

from __future__ import annotations


class Unusable(Exception):
    """The server cannot be used as it is configured; trying again will not help."""


class ServerEnded(Exception):
    """The process ended, or closed a pipe, while it was in use; the text has exit code and last words."""


class Refused(Exception):
    """The server answers, but refused the handshake or the list of its tools."""


class ConnectTimeout(Exception):
    """The server did not finish the handshake and its lists in time."""


class Older(Exception):
    """The server does not know the newer way over HTTP; it may know the older one."""


class Unauthorized(Unusable):
    """The server wants somebody's permission, and did not get it: only whoever can give it may try again."""


def cause_of(group: BaseException) -> BaseException:
    """The one error that explains a group: the death of the server, else the first."""
    if not isinstance(group, BaseExceptionGroup):
        return group
    causes = [cause_of(error) for error in group.exceptions]
    return next((error for error in causes if isinstance(error, ServerEnded)), causes[0])
