"""Attributes of spans, by OpenTelemetry's conventions for generative AI. Pure.

https://opentelemetry.io/docs/specs/semconv/gen-ai/ (as of 1.45). What they do not name has the
prefix ``everlog``.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from app.events import catalogue as c

__all__ = ["Attributes", "ended", "error", "moved", "queued", "run", "step"]

Attributes = dict[str, str | int | float | bool | list[str]]

SYSTEM = "everlog"
_PROVIDER: Attributes = {"gen_ai.provider.name": SYSTEM, "gen_ai.system": SYSTEM}


def run(data: c.RunStarted, thread: str | None) -> Attributes:
    """Of a call of a handler."""
    found: Attributes = {
        **_PROVIDER,
        "gen_ai.operation.name": "invoke_agent",
        "everlog.run.id": data.run,
        "everlog.run.hook": data.hook,
        "everlog.node": data.node,
    }
    return found | _conversation(thread)


def step(data: c.StepStarted, *, content: bool) -> Attributes:
    """Of a step."""
    found: Attributes = {"everlog.step.id": data.step, "everlog.step.kind": data.kind}
    if data.kind == "tool":
        found |= {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": data.name}
    elif data.kind == "retrieval":
        found["gen_ai.operation.name"] = "retrieval"
    if content and data.input is not None:
        found["gen_ai.tool.call.arguments"] = _text(data.input)
    return found


def queued(data: c.RequestQueued, thread: str | None, *, content: bool) -> Attributes:
    """Of a request, as it was asked."""
    operation = "text_completion" if data.messages is None else "chat"
    found: Attributes = {
        **_PROVIDER,
        "gen_ai.operation.name": "embeddings" if data.embed is not None else operation,
        "gen_ai.response.id": data.request,
        "everlog.request.priority": data.priority,
    }
    if data.model is not None:
        found["gen_ai.request.model"] = data.model
    if data.embed is None:
        found |= _sampling(data.params)
    if content:
        found |= _prompt(data)
    return found | _conversation(thread)


def _sampling(params: c.SamplingParams) -> Attributes:
    found: Attributes = {
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.output.type": "text",
    }
    if params.top_k:
        found["gen_ai.request.top_k"] = params.top_k
    if params.max_tokens is not None:
        found["gen_ai.request.max_tokens"] = params.max_tokens
    if params.seed is not None:
        found["gen_ai.request.seed"] = params.seed
    if params.frequency_penalty:
        found["gen_ai.request.frequency_penalty"] = params.frequency_penalty
    if params.presence_penalty:
        found["gen_ai.request.presence_penalty"] = params.presence_penalty
    form = params.structured
    if form is not None and (form.json_object or form.json_schema is not None):
        found["gen_ai.output.type"] = "json"
    return found


def _prompt(data: c.RequestQueued) -> Attributes:
    if data.messages is not None:
        turns = [
            {"role": turn.role, "parts": [{"type": "text", "content": turn.content}]}
            for turn in data.messages
        ]
    elif data.text is not None:
        turns = [{"role": "user", "parts": [{"type": "text", "content": data.text}]}]
    else:
        return {}
    return {"gen_ai.input.messages": _text(turns)}


def moved(data: Any) -> Attributes:
    """What became known on the way."""
    match data:
        case c.RequestClaimed(worker=worker):
            return {"everlog.worker": worker}
        case c.RequestStarted(model=model, prompt_tokens=tokens):
            return {
                "gen_ai.request.model": model,
                "gen_ai.response.model": model,
                "gen_ai.usage.input_tokens": tokens,
            }
        case c.RequestEmbedded(dimensions=dimensions):
            return {"gen_ai.embeddings.dimension.count": dimensions}
        case c.RunResumed(node=node):
            return {"everlog.node": node}
    return {}


def ended(data: Any, *, content: bool) -> Attributes:
    """How it ended."""
    match data:
        case c.RequestFinished():
            return _finished(data, content=content)
        case c.RequestFailed() | c.RequestCancelled():
            found: Attributes = {"everlog.request.state": _state(data)}
            if data.usage is not None:
                found |= _usage(data.usage)
            if content and isinstance(data, c.RequestFailed):
                found["everlog.error.message"] = data.message
            return found
        case c.StepCompleted(output=output) | c.StepFailed(output=output):
            found = {"everlog.step.state": _state(data)}
            if content and output is not None:
                found["gen_ai.tool.call.result"] = _text(output)
        case _:
            found = {"everlog.run.state": _state(data)}
    failure: c.ErrorInfo | None = getattr(data, "error", None)
    if content and failure is not None:
        found["everlog.error.message"] = failure.message
    return found


def _finished(data: c.RequestFinished, *, content: bool) -> Attributes:
    found: Attributes = {
        "gen_ai.response.finish_reasons": [data.reason],
        "everlog.request.state": "finished",
        "everlog.request.queue_ms": data.timings.queue_ms,
        "everlog.request.prefill_ms": data.timings.prefill_ms,
        "everlog.request.decode_ms": data.timings.decode_ms,
        **_usage(data.usage),
    }
    if content and data.text:
        part = {"type": "text", "content": data.text}
        turn = {"role": "assistant", "parts": [part], "finish_reason": data.reason}
        found["gen_ai.output.messages"] = _text([turn])
    return found


def _usage(usage: c.Usage) -> Attributes:
    found: Attributes = {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }
    if usage.cached_tokens:
        found["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    return found


def error(data: Any) -> str | None:
    """Kind of the error that it ended with; None for a good end, and where somebody stopped it."""
    match data:
        case c.RequestFailed(code=code):
            return code
        case c.RunFailed(error=info) | c.StepFailed(error=info):
            return info.kind
        case c.RunInterrupted():
            return "interrupted"
    return None


def _state(data: Any) -> str:
    return c.event_type(data).type.partition(".")[2]


def _conversation(thread: str | None) -> Attributes:
    return {} if thread is None else {"gen_ai.conversation.id": thread}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
