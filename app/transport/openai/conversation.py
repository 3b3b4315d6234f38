"""A conversation: the fold of a thread's events into OpenAI's items, and items as events. Pure.

Messages of a thread are items, whoever wrote them. A message that is bound to the request of a
response is what that response says: its text, its calls. What a tool was called with, and what it
gave, stands in the log as a step of the kind ``tool`` whose id is that of the call.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from app.chat.jobs import FROM_API, running
from app.events import catalogue as c
from app.events.codec import readable
from app.events.envelope import Event
from app.events.ids import public_id, uuid7
from app.events.lifecycle import TERMINAL
from app.projections.state import MessageState, empty, take
from app.transport.openai.call import failure
from app.transport.openai.errors import refusal
from app.transport.openai.logprobs import Spell
from app.transport.openai.prompts import message
from app.transport.openai.response import ResponseAnswer
from app.transport.openai.responses import called, gave, turns

__all__ = ["PREFIX", "Conversation", "Item", "additions", "message_item"]

PREFIX = "conv_"
MAX_ITEMS = 1000
"""Most items that are added at once: each is an event, which every later request reads."""
_STATUS = {"done": "completed", "streaming": "in_progress"}

Item = dict[str, Any]


class Conversation:
    """A thread as the API shows it.

    Args:
        thread: Id.
        events: All of its stream.
        spells: For log probabilities, by model; without one they are left out.

    Attributes:
        id: As clients know it.
        state: The thread.
        scored: Models of the responses that have log probabilities.

    """

    def __init__(
        self, thread: str, events: Iterable[Event], spells: Mapping[str | None, Spell] | None = None
    ) -> None:
        self.id = public_id(PREFIX, thread)
        self.state = empty(thread)
        self.scored: set[str | None] = set()
        self._hex = public_id("", thread)
        self._spells = spells or {}
        self._answers: dict[str, ResponseAnswer] = {}
        self._order: list[tuple[Event, c.Payload]] = []
        self._removed: set[str] = set()
        for event in events:
            payload = readable(event)
            take(self.state, event, payload)
            if payload is not None:
                self._note(event, payload)

    @property
    def busy(self) -> bool:
        """Whether something is being said: a request is open, or a handler runs."""
        waits = any(request.state not in TERMINAL for request in self.state.requests)
        return waits or bool(running(self.state))

    def body(self) -> dict[str, Any]:
        """The conversation as clients read it."""
        return {
            "id": self.id,
            "object": "conversation",
            "created_at": self.state.created // 10**9,
            "metadata": self.state.metadata,
        }

    def items(self) -> list[Item]:
        """What was said and called, in order; not of responses that failed, nor removed."""
        return [item for _, item in self._items()]

    def turns(self) -> list[c.ChatMessage]:
        """The same as turns of a prompt."""
        items = self.items()
        return turns(items) if items else []

    def calls(self) -> dict[str, Item]:
        """Calls by their ids."""
        items = [item for item in self.items() if item["type"] == "function_call"]
        return {item["call_id"]: item for item in items}

    @property
    def said(self) -> set[str]:
        """Ids of the calls that a model made."""
        answers = self._answers.values()
        items = [item for answer in answers for item in answer.output]
        return {item["call_id"] for item in items if item["type"] == "function_call"}

    def outputs(self) -> set[str]:
        """Ids of the calls whose output is there."""
        items = [item for item in self.items() if item["type"] == "function_call_output"]
        return {item["call_id"] for item in items}

    def removal(self, id: str) -> str | None:
        """What ``message.removed`` has to name to remove an item; None: there is no such item.

        It is a message if nothing else is in that; else the item alone, which no fold but this
        one knows.
        """
        sources = {item["id"]: source for source, item in self._items()}
        source = sources.get(id)
        alone = source is not None and list(sources.values()).count(source) == 1
        return source if alone else id if id in sources else None

    # ------------------------------------------------------------------------------ fold

    def _note(self, event: Event, payload: c.Payload) -> None:
        answer = self._answers.get(event.request or "")
        match payload:
            case c.MessagePosted() | c.MessageStarted():
                self._order.append((event, payload))
            case c.StepStarted(kind="tool") | c.StepCompleted() if event.run is None:
                self._order.append((event, payload))
            case c.MessageRemoved(message=id):
                self._removed.add(id)
            case c.RequestQueued() if payload.metadata.get("endpoint") == "responses":
                self._open(event, payload)
            case _ if answer is not None:
                error = failure(payload)
                if error is not None:
                    answer.broken(error)
                else:
                    answer.feed(0, payload)

    def _open(self, event: Event, queued: c.RequestQueued) -> None:
        if queued.params.logprobs is not None:
            self.scored.add(queued.model)
        self._answers[queued.request] = ResponseAnswer(
            queued,
            model=queued.metadata.get("model") or queued.model or "",
            created=event.time // 10**9,
            spell=self._spells.get(queued.model),
        )

    # ----------------------------------------------------------------------------- items

    def _items(self) -> Iterator[tuple[str | None, Item]]:
        """Items, each with the message it is of."""
        said = self.said
        for event, payload in self._order:
            if self._failed(event.cause):
                continue
            match payload:
                case c.MessagePosted(message=id) | c.MessageStarted(message=id):
                    yield from ((id, item) for item in self._message(self.state.index.messages[id]))
                case c.StepStarted(step=id) if id not in said:
                    given = payload.input if isinstance(payload.input, dict) else {}
                    fields = {"name": payload.name, "arguments": _json(given)}
                    yield from self._call(event, "function_call", "fc_", id, fields)
                case c.StepCompleted(step=id):
                    fields = {"output": payload.output if isinstance(payload.output, str) else ""}
                    yield from self._call(event, "function_call_output", "fco_", id, fields)

    def _message(self, message: MessageState) -> Iterator[Item]:
        if message.status == "removed" or message.level == "error" or message.step is not None:
            return
        answer = self._answers.get(message.request or "")
        if answer is not None:
            if answer.status != "failed":
                yield from (item for item in answer.output if item["id"] not in self._removed)
        elif message.content or message.role != "assistant":
            role = message.metadata.get("role") or message.role
            status = _STATUS.get(message.status, "incomplete")
            yield message_item(public_id("msg_", message.id), role, message.content, status)

    def _failed(self, request: str | None) -> bool:
        """Whether it is a response that failed: what came with it is not in the conversation."""
        answer = self._answers.get(request or "")
        return answer is not None and answer.status == "failed"

    def _call(
        self, event: Event, type: str, prefix: str, call: str, fields: Item
    ) -> Iterator[tuple[None, Item]]:
        id = f"{prefix}{self._hex}{event.version}"
        if id not in self._removed:
            head = {"id": id, "type": type, "status": "completed", "call_id": call}
            yield None, {**head, **fields}


def message_item(id: str, role: str, text: str, status: str = "completed") -> Item:
    """A message as clients read it."""
    if role == "assistant":
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    else:
        part = {"type": "input_text", "text": text}
    return {"id": id, "type": "message", "role": role, "status": status, "content": [part]}


def additions(
    given: str | list[Item], known: Conversation | None, *, name: str = "items"
) -> list[c.Payload]:
    """Events that add items to a conversation.

    Args:
        given: Items as clients send them, or what a user says.
        known: The conversation; None: a new one.
        name: Field that has them, for errors.

    Raises:
        ApiError: 400: an item cannot be read, a call has the id of another one, or an output
            belongs to no call, or to one that has an output; or there are too many.

    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if len(given) > MAX_ITEMS:
        raise refusal(name, f"{name} has {len(given)} parts; at most {MAX_ITEMS} can be added")
    calls = known.calls() if known is not None else {}
    done = known.outputs() if known is not None else set()
    said = known.said if known is not None else set()
    found: list[c.Payload] = []
    for index, item in enumerate(given):
        at, kind = f"{name}[{index}]", item.get("type", "message")
        if kind == "message":
            found.append(_posted(item, at))
        elif kind == "function_call":
            call = called(item, at)
            if call.id in calls:
                raise refusal(f"{at}.call_id", f"{at}: there is a call {call.id!r} already")
            calls[call.id] = item
            found.append(_step(call))
        elif kind == "function_call_output":
            id, text = gave(item, at)
            if id not in calls:
                raise refusal(f"{at}.call_id", f"{at}: there is no call {id!r} before it")
            if id in done:
                raise refusal(f"{at}.call_id", f"{at}: the call {id!r} has an output already")
            done.add(id)
            if id in said:  # no step says so yet
                found.append(_step(called(calls[id], at)))
            found.append(c.StepCompleted(step=id, output=text))
        elif kind != "reasoning":
            raise refusal(f"{at}.type", f"{at}: an item of type {kind!r} is not supported")
    return found


def _step(call: c.ToolCall) -> c.StepStarted:
    return c.StepStarted(step=call.id, name=call.name, kind="tool", input=call.arguments)


def _posted(item: Item, at: str) -> c.MessagePosted:
    turn = message(item, at)
    if turn.role == "tool" or turn.tool_calls:
        raise refusal(f"{at}.role", f"{at}: what tools do are items of their own here")
    given = item["role"]
    metadata = {FROM_API: True, **({"role": given} if given != turn.role else {})}
    return c.MessagePosted(
        message=uuid7(), role=turn.role, content=turn.content, author=turn.name, metadata=metadata
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
