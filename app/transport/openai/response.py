"""A response: the fold of a request's events, and the events of its stream. Pure.

The same events of the log give the same stream with the same sequence numbers, so a client may come
back at any time, to any node, and go on behind the last event it saw.
"""

from __future__ import annotations

from typing import Any

from app.events.catalogue import (
    ChatMessage,
    Payload,
    RequestFinished,
    RequestQueued,
    RequestStarted,
    TokensGenerated,
    ToolCall,
)
from app.events.ids import public_id
from app.transport.openai import calls, logprobs, sse
from app.transport.openai.call import CANCELLED
from app.transport.openai.errors import ApiError
from app.transport.openai.prompts import arguments
from app.transport.openai.usage import Counter

__all__ = ["ResponseAnswer", "said"]

PREFIX = "resp_"
THEIRS = ("shutting_down", "log_unavailable", "internal_error")
"""Errors of the server that sends, which say nothing of the request."""
Item = dict[str, Any]


class ResponseAnswer:
    """A response and its stream, out of the events of its request.

    Args:
        queued: The request.
        model: Name that clients see.
        created: Seconds since the epoch.
        after: Events of the stream up to this sequence number are left out.
        spell: For log probabilities; None leaves them out.

    Attributes:
        status: ``queued``, ``in_progress``, ``completed``, ``incomplete``, ``failed`` or
            ``cancelled``.
        output: Items so far.

    """

    def __init__(
        self,
        queued: RequestQueued,
        *,
        model: str,
        created: int,
        after: int = -1,
        spell: logprobs.Spell | None = None,
    ) -> None:
        self.status = "queued"
        self.output: list[Item] = []
        self._queued = queued
        self._meta = queued.metadata
        self._hex = public_id("", queued.request)
        self._model = model
        self._created = created
        self._after = after
        self._spell = spell
        self._usage = Counter(1, 1)
        self._error: dict[str, Any] | None = None
        self._incomplete: dict[str, Any] | None = None
        self._ended = False
        self._sequence = 0
        self._message: Item | None = None  # that is being said
        tools = {tool["function"]["name"] for tool in queued.tools or ()}
        self._parser = calls.parser(
            frozenset(tools), forced=bool(self._meta.get("forced")), model=model
        )
        self._opening = self._event("response.created", response=self.body())
        self._opening += self._event("response.queued", response=self.body())

    # ---------------------------------------------------------------------------- stream

    def opening(self) -> bytes:
        """Frames that say that it was queued."""
        return self._opening

    def feed(self, index: int, payload: Payload) -> bytes:
        """Frames that say what happened to the request."""
        self._usage.feed(index, payload)
        match payload:
            case RequestStarted() if self.status == "queued":
                self.status = "in_progress"
                return self._event("response.in_progress", response=self.body())
            case TokensGenerated(text=text):
                return self._deltas(self._parser.push(text), self._scores(payload))
            case RequestFinished(reason=reason):
                frames = self._deltas(self._parser.finish(), [])
                frames += self._close("completed" if reason == "stop" else "incomplete")
                return frames + self._end(reason)
            case _:
                return b""

    def closing(self) -> bytes:
        """Nothing: the last event has said that it is over."""
        return b""

    def broken(self, error: ApiError) -> bytes:
        """Frames that say how it ended badly, or that only the stream did."""
        if error.code in THEIRS:
            fields = {"code": error.code, "message": error.message, "param": None}
            return sse.event({"type": "error", "sequence_number": self._sequence, **fields})
        if error.code == "cancelled" and error.message == CANCELLED:
            self.status = "cancelled"
        else:
            self.status = "failed"
            self._error = {"code": error.code or "server_error", "message": error.message}
        self._ended = True
        return self._close("incomplete") + self._event("response.failed", response=self.body())

    def _end(self, reason: str) -> bytes:
        self._ended = True
        if reason == "stop":
            self.status = "completed"
        else:
            self.status, self._incomplete = "incomplete", {"reason": "max_output_tokens"}
        return self._event(f"response.{self.status}", response=self.body())

    def _deltas(self, deltas: list[calls.Delta], scores: list[Item]) -> bytes:
        frames = b""
        for delta in deltas:
            if isinstance(delta, str):
                frames += self._say(delta, scores)
                scores = []
            elif self._meta.get("parallel_tool_calls", True) or not self._calls():
                frames += self._close("completed") + self._call(delta)
        return frames

    def _say(self, text: str, scores: list[Item]) -> bytes:
        frames = b""
        if self._message is None:
            self._message = {
                "id": f"msg_{self._hex}{len(self.output)}",
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
            self.output.append(self._message)
            frames = self._event(
                "response.output_item.added", output_index=self._at, item=self._message
            )
            self._message["content"] = [_part("")]
            frames += self._within("response.content_part.added", part=_part(""))
        part = self._message["content"][0]
        part["text"] += text
        part["logprobs"] += scores
        return frames + self._within("response.output_text.delta", delta=text, logprobs=scores)

    def _close(self, status: str) -> bytes:
        """End the message that is being said, if there is one."""
        if self._message is None:
            return b""
        part = self._message["content"][0]
        self._message["status"] = status
        frames = self._within(
            "response.output_text.done", text=part["text"], logprobs=part["logprobs"]
        )
        frames += self._within("response.content_part.done", part=part)
        frames += self._event(
            "response.output_item.done", output_index=self._at, item=self._message
        )
        self._message = None
        return frames

    def _call(self, called: calls.Called) -> bytes:
        number = len(self._calls())
        item = {
            "id": f"fc_{self._hex}{number}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": calls.call_id(self._queued.request, number),
            "name": called.name,
            "arguments": "",
        }
        self.output.append(item)
        where = {"item_id": item["id"], "output_index": self._at}
        frames = self._event("response.output_item.added", output_index=self._at, item=item)
        item.update(status="completed", arguments=called.arguments)
        frames += self._event(
            "response.function_call_arguments.delta", **where, delta=called.arguments
        )
        frames += self._event(
            "response.function_call_arguments.done",
            **where,
            name=called.name,
            arguments=called.arguments,
        )
        return frames + self._event("response.output_item.done", output_index=self._at, item=item)

    def _calls(self) -> list[Item]:
        return [item for item in self.output if item["type"] == "function_call"]

    @property
    def _at(self) -> int:
        return len(self.output) - 1

    def _within(self, type: str, **fields: Any) -> bytes:
        """An event about the text that is being said."""
        item = self.output[-1]["id"]
        return self._event(type, item_id=item, output_index=self._at, content_index=0, **fields)

    def _event(self, type: str, **fields: Any) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        if number <= self._after:
            return b""
        return sse.event({"type": type, "sequence_number": number, **fields})

    def _scores(self, payload: TokensGenerated) -> list[Item]:
        if not payload.logprobs or self._spell is None:
            return []
        return logprobs.chat(payload.tokens, payload.logprobs, self._spell)

    # ----------------------------------------------------------------------------- whole

    def body(self) -> dict[str, Any]:
        """The response as it is now."""
        meta, params = self._meta, self._queued.params
        usage, thread = self._usage.total(), meta.get("thread")
        return {
            "id": public_id(PREFIX, self._queued.request, *((thread,) if thread else ())),
            "object": "response",
            "created_at": self._created,
            "status": self.status,
            "background": meta.get("background", False),
            "conversation": {"id": public_id("conv_", thread)} if thread else None,
            "error": self._error,
            "incomplete_details": self._incomplete,
            "instructions": meta.get("instructions"),
            "max_output_tokens": params.max_tokens,
            "metadata": meta.get("metadata", {}),
            "model": self._model,
            "output": self.output,
            "parallel_tool_calls": meta.get("parallel_tool_calls", True),
            "previous_response_id": meta.get("previous_response_id"),
            "reasoning": {"effort": None, "summary": None},
            "store": True,
            "temperature": params.temperature,
            "text": meta.get("text") or {"format": {"type": "text"}},
            "tool_choice": meta.get("tool_choice") or "auto",
            "tools": meta.get("tools") or [],
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            }
            if self._ended
            else None,
            "user": meta.get("user"),
        }


def _part(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def said(output: list[Item]) -> list[ChatMessage]:
    """An answer as a turn of the next prompt; none if it is empty."""
    text = "".join(item["content"][0]["text"] for item in output if item["type"] == "message")
    called = [
        ToolCall(
            id=item["call_id"],
            name=item["name"],
            arguments=arguments(item["arguments"], "arguments"),
        )
        for item in output
        if item["type"] == "function_call"
    ]
    if not text and not called:
        return []
    return [ChatMessage(role="assistant", content=text, tool_calls=called or None)]
