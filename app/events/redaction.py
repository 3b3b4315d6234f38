"""What is left of an event whose content is erased. Pure.

Content is what people wrote, what was made of it, and how they are called: texts, token ids,
names, settings, inputs and outputs. Everything else stays, so that every fold, projection and
client goes on working: ids, roles, states, numbers and times. `RULES` says so for every field of
every payload; a test fails for a field without a rule.

Not touched is the envelope: its stream, actor, request and run are part of the event's leaf hash.
"""

from __future__ import annotations

import copy
from typing import Any, Final

import msgspec

from app.errors import EverlogError
from app.events import catalogue as c
from app.events.catalogue import CATALOGUE
from app.events.codec import PayloadError, decode
from app.events.envelope import Event

__all__ = ["KEEP", "MARK", "RULES", "Within", "remainder"]

MARK = "[redacted]"
"""Stands where a person looks for a text."""


class Keep(msgspec.Struct, frozen=True):
    """Rule of a field that is no content."""


class Within(msgspec.Struct, frozen=True):
    """Rule of a field that holds a struct, or a list of them, with rules of its own."""

    struct: type[msgspec.Struct]


KEEP: Final = Keep()

#: Payload or struct -> field -> `KEEP`, `Within`, or the value that takes the content's place.
#: A null stays null: it says which of several fields is used.
RULES: dict[type[msgspec.Struct], dict[str, Any]] = {
    c.ErrorInfo: {"kind": KEEP, "message": MARK, "traceback": None},
    c.Usage: {
        "prompt_tokens": KEEP,
        "completion_tokens": KEEP,
        "cached_tokens": KEEP,
        "draft_tokens": KEEP,
        "accepted_tokens": KEEP,
    },
    c.Timings: {"queue_ms": KEEP, "prefill_ms": KEEP, "decode_ms": KEEP},
    c.ToolCall: {"id": KEEP, "name": MARK, "arguments": {}},
    c.ChatMessage: {
        "role": KEEP,
        "content": MARK,
        "name": None,
        "tool_calls": Within(c.ToolCall),
        "tool_call_id": KEEP,
    },
    # which form was asked for can still be seen
    c.Structured: {
        "json_schema": {},
        "json_object": KEEP,
        "regex": "",
        "grammar": "",
        "choice": [],
    },
    c.TokenLogprobs: {"logprob": 0.0, "top": []},
    c.SamplingParams: {
        **dict.fromkeys(msgspec.structs.asdict(c.SamplingParams()), KEEP),
        "stop": [],
        "stop_token_ids": [],
        "logit_bias": {},
        "structured": Within(c.Structured),
        "processors": {},
    },
    c.Embedding: {"dimensions": KEEP},
    # threads
    c.ThreadCreated: {"owner": KEEP, "title": None, "metadata": {}},
    c.ThreadRenamed: {"title": MARK},
    c.ThreadForked: {"source": KEEP, "version": KEEP},
    c.ThreadShared: {"shared": KEEP},
    c.ThreadSettingsChanged: {"settings": {}},
    c.ThreadMetadataChanged: {"metadata": {}},
    c.ThreadDeleted: {},
    c.SessionChanged: {"values": {}, "removed": []},
    # messages
    c.MessagePosted: {
        "message": KEEP,
        "role": KEEP,
        "content": MARK,
        "author": None,
        "parent": KEEP,
        "step": KEEP,
        "level": KEEP,
        "metadata": {},
    },
    c.MessageStarted: {
        "message": KEEP,
        "role": KEEP,
        "author": None,
        "parent": KEEP,
        "step": KEEP,
        "request": KEEP,
        "metadata": {},
    },
    c.MessageDelta: {"message": KEEP, "text": ""},
    c.MessageCompleted: {"message": KEEP, "content": MARK},
    c.MessageEdited: {"message": KEEP, "content": MARK, "metadata": {}},
    c.MessageRemoved: {"message": KEEP},
    c.MessageFeedback: {"message": KEEP, "value": KEEP, "comment": None},
    # runs and steps; a step may be named after what was asked
    c.RunStarted: {
        "run": KEEP,
        "hook": KEEP,
        "node": KEEP,
        "message": KEEP,
        "resumable": KEEP,
    },
    c.RunCompleted: {"run": KEEP},
    c.RunFailed: {"run": KEEP, "error": Within(c.ErrorInfo)},
    c.RunStopped: {"run": KEEP},
    c.RunInterrupted: {"run": KEEP, "reason": KEEP},
    c.RunResumed: {"run": KEEP, "node": KEEP},
    c.StepStarted: {
        "step": KEEP,
        "name": MARK,
        "kind": KEEP,
        "parent": KEEP,
        "input": None,
        "request": KEEP,
    },
    c.StepDelta: {"step": KEEP, "text": ""},
    c.StepCompleted: {"step": KEEP, "output": None},
    c.StepFailed: {"step": KEEP, "error": Within(c.ErrorInfo), "output": None},
    # requests; the digest of a short text gives the text away
    c.RequestQueued: {
        "request": KEEP,
        "params": Within(c.SamplingParams),
        "model": KEEP,
        "messages": Within(c.ChatMessage),
        "text": "",
        "prompt": [],
        "priority": KEEP,
        "deadline": KEEP,
        "salt": None,
        "tools": [],
        "template": {},
        "metadata": {},
        "embed": Within(c.Embedding),
        "tenant": KEEP,
    },
    c.RequestClaimed: {"request": KEEP, "epoch": KEEP, "worker": KEEP},
    c.RequestStarted: {
        "request": KEEP,
        "epoch": KEEP,
        "model": KEEP,
        "weights": KEEP,
        "prompt_tokens": KEEP,
        "cached_tokens": KEEP,
        "resumed_tokens": KEEP,
        "queue_ms": KEEP,
        "dtype": KEEP,
        "version": KEEP,
        "deterministic": KEEP,
        "threads": KEEP,
        "cpu": KEEP,
        "torch": KEEP,
        "waited_for": KEEP,
    },
    c.RequestPreempted: {"request": KEEP, "epoch": KEEP, "reason": KEEP},
    c.RequestResumed: {"request": KEEP, "epoch": KEEP},
    c.TokensGenerated: {
        "request": KEEP,
        "epoch": KEEP,
        "batch": KEEP,
        "index": KEEP,
        "tokens": [],
        "text": "",
        "offsets": [],
        "logprobs": [],
        "prompt_logprobs": [],
    },
    # a vector tells much of its text
    c.RequestEmbedded: {
        "request": KEEP,
        "epoch": KEEP,
        "vector": "",
        "dimensions": KEEP,
        "pooling": KEEP,
    },
    c.RequestFinished: {
        "request": KEEP,
        "epoch": KEEP,
        "reason": KEEP,
        "text": MARK,
        "usage": Within(c.Usage),
        "timings": Within(c.Timings),
        "batches": KEEP,
        "digest": "",
    },
    c.RequestFailed: {
        "request": KEEP,
        "code": KEEP,
        "message": MARK,
        "epoch": KEEP,
        "usage": Within(c.Usage),
    },
    c.RequestCancelled: {"request": KEEP, "text": MARK, "usage": Within(c.Usage)},
    c.RequestAbandoned: {"request": KEEP, "epoch": KEEP, "worker": KEEP, "reason": KEEP},
    c.ResponseDeleted: {"request": KEEP},
    # workers
    c.WorkerStarted: {
        "worker": KEEP,
        "model": KEEP,
        "weights": KEEP,
        "device": KEEP,
        "pid": KEEP,
        "context": KEEP,
        "blocks": KEEP,
    },
    c.WorkerDrained: {"worker": KEEP},
    c.WorkerCrashed: {"worker": KEEP, "reason": MARK, "requests": KEEP},
    c.WorkerLost: {"worker": KEEP},
    # users
    c.UserCreated: {"user": KEEP, "name": None},
    c.UserLogin: {"user": KEEP},
    c.UserLogout: {"user": KEEP},
    # a key's name is the actor of events, as a user's id is
    c.KeyCreated: dict.fromkeys(
        ("key", "name", "hash", "scopes", "rate", "concurrency", "expires", "user"), KEEP
    ),
    c.KeyRevoked: {"key": KEEP},
    # a file's content is an object; the name that it was given says something too
    c.LineError: {"code": KEEP, "message": MARK, "line": KEEP, "param": KEEP},
    c.FileCreated: {
        **dict.fromkeys(("file", "purpose", "bytes", "sha256", "object", "owner"), KEEP),
        "name": MARK,
    },
    c.FileDeleted: {"file": KEEP},
    c.BatchCreated: {
        **dict.fromkeys(("batch", "input", "endpoint", "window", "expires", "owner"), KEEP),
        "metadata": {},
    },
    c.BatchClaimed: {"batch": KEEP, "node": KEEP},
    c.BatchStarted: {"batch": KEEP, "total": KEEP},
    c.BatchProgressed: {"batch": KEEP, "completed": KEEP, "failed": KEEP},
    c.BatchCancelling: {"batch": KEEP},
    c.BatchFinalizing: {"batch": KEEP},
    c.BatchEnded: {
        **dict.fromkeys(("batch", "state", "completed", "failed", "output", "error"), KEEP),
        "errors": Within(c.LineError),
    },
    # the log's own facts prove the rest: they hold no content and stay as they are
    c.LogSealed: {
        "first": KEEP,
        "last": KEEP,
        "merkle": KEEP,
        "previous": KEEP,
        "root": KEEP,
    },
    c.LogRedacted: {"seqs": KEEP, "left": KEEP, "reason": KEEP},
    c.LogArchived: dict.fromkeys(("first", "last", "object", "sha256", "events", "bytes"), KEEP),
    c.LogRestored: dict.fromkeys(("first", "last", "object", "events", "rest", "sha256"), KEEP),
}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_NOTHING = b"{}"


def remainder(event: Event) -> bytes | None:
    """Payload that is left of an event without its content; None if it has none.

    Of a payload that this code cannot read (its type is unknown, or it is malformed) nothing is
    left but an empty object. What is left of what is left is the same.

    Raises:
        EverlogError: The payload's schema is newer than this code, or older and what would be
            left of it cannot be lifted.

    """
    entry = CATALOGUE.get(event.type)
    if entry is not None and event.schema > entry.schema:
        raise EverlogError(
            f"event {event.seq} ({event.type}, schema {event.schema}) is newer than this Everlog",
            hint="Upgrade Everlog, then redact again.",
        )
    try:
        value = _decode(event.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        value = None
    if entry is None or not isinstance(value, dict):
        return None if event.data == _NOTHING else _NOTHING
    left = _blank(entry.payload, value)
    if left == value:
        return None
    data = _encode(left)
    if event.schema < entry.schema:
        try:
            decode(msgspec.structs.replace(event, data=data))
        except PayloadError as error:
            raise EverlogError(
                f"event {event.seq} cannot be redacted: {error}",
                hint="Please report this as a bug.",
            ) from error
    return data


def _blank(struct: type[msgspec.Struct], value: dict[str, Any]) -> dict[str, Any]:
    """The fields with a rule, blanked; any other may hold anything, and goes.

    What becomes null is left out, like any field that has its default.
    """
    rules = RULES[struct]
    return {
        name: _apply(rules[name], part)
        for name, part in value.items()
        if name in rules and (rules[name] is not None or part is None)
    }


def _apply(rule: Any, value: Any) -> Any:
    if rule is KEEP or value is None:
        return value
    if not isinstance(rule, Within):
        return copy.copy(rule)
    if isinstance(value, list):
        return [_apply(rule, part) for part in value]
    return _blank(rule.struct, value) if isinstance(value, dict) else None
