"""What a server asks of us, from the MCP package's words into ours and back.

The package calls `elicit` and `sample` for both eras: for requests of the server in the older one, for input that a
call requires in the newer. What is not asked at all is declined, which the server gets to read. Nothing in here
raises: the package would answer with its own words.
"""

from __future__ import annotations

from typing import Any

import mcp_types as types
from mcp.client import ClientRequestContext
from pydantic import ValidationError

from actors.server_requests import ServerRequests, Unasked
from protocol.mcp_server import AnswerSampling, SamplingRequest

ADDRESSES_MAX = 5  # that a person is sent to before one call
REJECTED = -1  # the specification's code for a sampling request that was not granted


class Asking:
    """The callbacks of one connection.

    Args:
        requests: where they are params.
    """

    def __init__(self, requests: ServerRequests) -> None:
        self._requests = requests

    async def elicit(
        self, context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult | types.ErrorData:
        """The user is asked to fill in a form, or to visit an address."""
        try:
            if isinstance(params, types.ElicitRequestURLParams):
                answer = await self._requests.ask_user(
                    params.message, schema=None, url=params.url, elicitation=params.elicitation_id
                )
            else:
                answer = await self._requests.ask_user(params.message, schema=params.requested_schema, url=None)
        except Unasked as error:
            return types.ErrorData(code=types.INVALID_PARAMS, message=str(error)) if error.bad else DECLINED
        form = answer.action == "accept" and not isinstance(params, types.ElicitRequestURLParams)
        action: Any = answer.action
        return types.ElicitResult(action=action, content=answer.content or {} if form else None)

    async def cleared(self, required: types.ErrorData) -> bool:
        """A call was refused until the user has been at some addresses: ask for that; whether to call again.

        Once they are opened, it is waited for the server to say that it is done, for a while: it need not say so.
        """
        try:
            data = types.ElicitationRequiredErrorData.model_validate(required.data)
        except ValidationError:
            return False
        wanted = data.elicitations[:ADDRESSES_MAX]
        for one in wanted:
            try:
                answer = await self._requests.ask_user(
                    one.message, schema=None, url=one.url, elicitation=one.elicitation_id
                )
            except Unasked:
                return False
            if answer.action != "accept":
                return False
        await self._requests.until_visited([one.elicitation_id for one in wanted if one.elicitation_id is not None])
        return bool(wanted)

    async def sample(
        self, context: ClientRequestContext, params: types.CreateMessageRequestParams
    ) -> types.CreateMessageResult | types.CreateMessageResultWithTools | types.ErrorData:
        """A model is asked on the server's behalf."""
        preferences = params.model_preferences
        hints = (preferences.hints if preferences is not None else None) or []
        try:
            answer = await self._requests.ask_model(
                SamplingRequest(
                    request="",
                    server="",
                    call="",
                    nth=0,
                    messages=[_message(message) for message in params.messages],
                    max_tokens=params.max_tokens,
                    system_prompt=params.system_prompt or "",
                    temperature=params.temperature,
                    stop=params.stop_sequences or [],
                    hints=[hint.name for hint in hints if hint.name],
                    tools=[_plain(tool) for tool in params.tools or []],
                    tool_choice=(params.tool_choice.mode if params.tool_choice is not None else None) or "",
                )
            )
        except Unasked as error:
            return types.ErrorData(code=types.INVALID_PARAMS if error.bad else REJECTED, message=str(error))
        if answer.refused:
            return types.ErrorData(code=REJECTED, message=answer.refused)
        return _result(answer, tools=bool(params.tools))


DECLINED = types.ElicitResult(action="decline")


def _result(answer: AnswerSampling, *, tools: bool) -> types.CreateMessageResult | types.CreateMessageResultWithTools:
    said = {"role": "assistant", "model": answer.model, "stopReason": answer.stop_reason or None}
    blocks = answer.content or [{"type": "text", "text": ""}]
    if tools:
        return types.CreateMessageResultWithTools.model_validate({**said, "content": blocks}, by_name=False)
    return types.CreateMessageResult.model_validate({**said, "content": blocks[0]}, by_name=False)


def _message(message: types.SamplingMessage) -> dict[str, Any]:
    return {"role": message.role, "content": [_plain(block) for block in message.content_as_list]}


def _plain(model: Any) -> dict[str, Any]:
    plain: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return plain
