"""A model for scripts: prompts in, completions out, without a server and without a log."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeAlias, cast

import msgspec

from app.config import EngineConfig
from app.engine import hub
from app.engine.child import Child
from app.engine.flow import Outcome, complete
from app.engine.frames import Add, CoreConfig, Ready, capacity, core_config
from app.engine.progress import bar
from app.engine.sampling import SamplingParams, TokenLogprobs, validate
from app.errors import InputError
from app.events.catalogue import ChatMessage, Embedding, Usage

__all__ = ["LLM", "Completion", "Message", "Prompt", "offline_config"]

Message: TypeAlias = ChatMessage | Mapping[str, Any]
Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]
"""Text as it is, token ids, or the messages of a conversation, for the chat template."""

OFFLINE = {"max_batch": 256, "max_tokens_per_step": 2048}
"""Nobody waits for a first token, so batches and steps may be larger than a server's."""


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt became.

    Attributes:
        prompt: As it was given.
        text: The answer, without the end token and without a stop string.
        tokens: Token ids of the answer; the end token is among them.
        reason: ``stop`` (an end token or a stop string), ``length``, or ``error``.
        usage: Tokens of the prompt, how many of them were cached, and of the answer.
        logprobs: One for each token, if ``params.logprobs`` asks for them.
        prompt_logprobs: One for each token of the prompt, None for the first, if
            ``params.prompt_logprobs`` asks for them.
        error: Why there is no answer, or no more of it.

    """

    prompt: Any
    text: str
    tokens: list[int]
    reason: str
    usage: Usage
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    error: str | None = None


class LLM:
    """A model, loaded in a process of its own. Use it as a context manager, or `close` it.

    One thread at a time. The caller's process needs no torch.

    Args:
        model: Name of a known model (fetched if need be), a GGUF file, or a folder with
            config.json.
        settings: Those of the section ``[engine]``: ``device``, ``dtype``, ``threads``,
            ``kv_memory``, ``max_batch`` ... By default batches are larger than a server's.

    Raises:
        InputError: A setting is unknown, or out of range.
        StartupError: There is no such model, or it cannot be loaded.

    """

    def __init__(self, model: str = EngineConfig().model, **settings: Any) -> None:
        config = offline_config(model, settings)
        self._child = Child(config)
        self._window = capacity(config.max_batch)
        self._calls = itertools.count()

    @property
    def info(self) -> Ready:
        """What was loaded, and onto what."""
        return self._child.ready

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        strict: bool = True,
    ) -> list[Completion]:
        """Complete prompts, as many at once as fit. Ctrl-C ends them; the model stays loaded.

        Args:
            prompts: One, or several. Text and token ids are completed as they are; messages go
                through the model's chat template.
            params: How to sample: the same for all (by default greedy, as far as the context
                reaches), or one for each prompt. Where ``seed`` is None, one is drawn.
            progress: Show a bar on the terminal.
            strict: Whether a prompt that cannot be completed is an error, which ends the others.
                If not, its completion has the reason ``error``.

        Returns:
            A completion for each prompt, in their order.

        Raises:
            InputError: A parameter is out of range, or (if ``strict``) a prompt cannot be
                completed; says which.
            CoreDied: The engine's process ended, perhaps for want of memory.

        """
        return self._run(_several(prompts), params, {}, progress=progress, strict=strict)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
        progress: bool = False,
        strict: bool = True,
    ) -> list[Completion]:
        """Answer conversations: the same as `generate`, for messages alone.

        Args:
            messages: Of one conversation, or of several.
            params: As for `generate`.
            tools: Tools that the chat template offers to the model, as OpenAI's API has them.
            template: More variables of the chat template.
            progress: As for `generate`.
            strict: As for `generate`.

        Raises:
            InputError: As for `generate`; or there is something else than messages.
            CoreDied: As for `generate`.

        """
        given = _several(cast("Prompt | Sequence[Prompt]", messages))
        for index, each in enumerate(given):
            if not _is_messages(each):
                raise InputError("must be a list of messages", field=f"messages[{index}]")
        more = {"tools": tools, "template": dict(template or {})}
        return self._run(given, params, more, progress=progress, strict=strict)

    def embed(
        self,
        prompts: str | Sequence[int] | Sequence[str | Sequence[int]],
        *,
        dimensions: int | None = None,
        progress: bool = False,
    ) -> list[list[float]]:
        """Make vectors of texts or token ids: pooled hidden states, of length 1.

        Args:
            prompts: One, or several.
            dimensions: Cut the vectors to this length, and scale them to length 1 again.
            progress: Show a bar on the terminal.

        Returns:
            A vector for each prompt, in their order.

        Raises:
            InputError: A prompt cannot be read, or there are no vectors so long; says which.
            CoreDied: The engine's process ended.

        """
        given, call = _several(prompts), next(self._calls)
        how = Embedding(dimensions=dimensions)
        adds = [
            msgspec.structs.replace(
                _add(f"{call}.{index}", each, SamplingParams(seed=0), {}, f"prompts[{index}]"),
                embed=how,
            )
            for index, each in enumerate(given)
        ]
        found: list[list[float]] = [[] for _ in given]
        with bar("Reading", len(given)) if progress else _no_bar() as advance:
            flow = complete(self._child, adds, window=self._window)
            with contextlib.closing(flow):
                for done, outcome in enumerate(flow, 1):
                    index = int(outcome.request.partition(".")[2])
                    if outcome.error is not None:
                        why = outcome.error.removeprefix("prompt: ")
                        raise InputError(why, field=f"prompts[{index}]")
                    count = len(outcome.embedding) // 4
                    found[index] = list(struct.unpack(f"<{count}f", outcome.embedding))
                    advance(done, 0)
        return found

    def close(self) -> None:
        """End the engine's process."""
        self._child.close()

    def __enter__(self) -> LLM:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _run(
        self,
        prompts: list[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        more: dict[str, Any],
        *,
        progress: bool,
        strict: bool,
    ) -> list[Completion]:
        each = _each(params, len(prompts))
        call = next(self._calls)  # late frames of a call that was cut short are nobody's
        adds = [
            _add(f"{call}.{index}", prompt, how, more, f"prompts[{index}]")
            for index, (prompt, how) in enumerate(zip(prompts, each, strict=True))
        ]
        found: list[Completion | None] = [None] * len(prompts)
        with bar("Generating", len(prompts)) if progress else _no_bar() as advance:
            done = tokens = 0

            def count(new: int) -> None:
                nonlocal tokens
                tokens += new
                advance(done, tokens)

            flow = complete(self._child, adds, window=self._window, progress=count)
            with contextlib.closing(flow):
                for outcome in flow:
                    index = int(outcome.request.partition(".")[2])
                    if strict and outcome.error is not None:
                        why = outcome.error.removeprefix("prompt: ")
                        raise InputError(why, field=f"prompts[{index}]")
                    found[index] = _completion(prompts[index], each[index], outcome)
                    done += 1
                    advance(done, tokens)
        return cast("list[Completion]", found)


def offline_config(model: str, settings: Mapping[str, Any]) -> CoreConfig:
    """Settings of a core that nobody waits for; ``settings`` are those of ``[engine]``.

    Raises:
        InputError: One is unknown, or out of range.
        StartupError: There is no such model.

    """
    names = CoreConfig.__struct_fields__
    for name in settings:
        if name not in names or name == "model":
            known = ", ".join(n for n in names if n != "model")
            raise InputError("there is no such setting", field=name, hint=f"There are: {known}")
    try:
        given = msgspec.convert({**OFFLINE, **settings}, type=EngineConfig)
    except msgspec.ValidationError as error:
        raise InputError(str(error)) from None
    return core_config(given, str(hub.resolve(model)))


@contextlib.contextmanager
def _no_bar() -> Iterator[Any]:
    yield lambda requests, tokens: None


def _several(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt as a list of one."""
    if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], (int, *_MESSAGE))):
        return [cast(Prompt, prompts)]
    return list(cast(Sequence[Prompt], prompts))


_MESSAGE = (ChatMessage, Mapping)


def _is_messages(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and all(isinstance(each, _MESSAGE) for each in prompt)


def _each(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    """Parameters of each prompt, with seeds.

    Raises:
        InputError: They are not so many, or out of range.

    """
    if params is None or isinstance(params, SamplingParams):
        one = params or SamplingParams()
        validate(one)
        given = [one] * count
    else:
        given = list(params)
        if len(given) != count:
            raise InputError(f"must be one, or {count} as the prompts are", field="params")
        for index, each in enumerate(given):
            validate(each, prefix=f"params[{index}]")
    return [
        each if each.seed is not None else msgspec.structs.replace(each, seed=secrets.randbits(63))
        for each in given
    ]


def _add(
    request: str, prompt: Prompt, params: SamplingParams, more: dict[str, Any], field: str
) -> Add:
    """The frame that asks for it.

    Raises:
        InputError: It is empty, or nothing that can be completed.

    """
    if not prompt:
        raise InputError("must not be empty", field=field)
    if isinstance(prompt, str):
        return Add(request=request, params=params, text=prompt)
    if all(isinstance(each, int) for each in prompt):
        return Add(request=request, params=params, prompt=list(cast(Sequence[int], prompt)))
    try:
        messages = msgspec.convert(list(prompt), type=list[ChatMessage], from_attributes=True)
    except msgspec.ValidationError as error:
        raise InputError(f"no text, no token ids, no messages: {error}", field=field) from None
    return Add(request=request, params=params, messages=messages, **more)


def _completion(prompt: Prompt, params: SamplingParams, outcome: Outcome) -> Completion:
    return Completion(
        prompt=prompt,
        text=outcome.text,
        tokens=outcome.tokens,
        reason=outcome.reason,
        usage=outcome.usage,
        logprobs=outcome.logprobs if params.logprobs is not None else None,
        prompt_logprobs=outcome.prompt if params.prompt_logprobs is not None else None,
        error=outcome.error,
    )
