"""Messages between host and core: MessagePack by msgspec, each behind a 4-byte length."""

from __future__ import annotations

from typing import Any

import msgspec

from app.config import EngineConfig
from app.engine.sampling import SamplingParams, TokenLogprobs
from app.events.catalogue import ChatMessage, Embedding, RequestQueued

__all__ = [
    "Add",
    "Cancel",
    "CoreConfig",
    "Failed",
    "Fatal",
    "FromCore",
    "Output",
    "Preempted",
    "Ready",
    "Resumed",
    "Started",
    "Step",
    "Stop",
    "ToCore",
    "asked",
    "capacity",
    "core_config",
]


class _Frame(msgspec.Struct, tag=True, frozen=True, kw_only=True, gc=False):
    pass


class CoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a core process is set up (given to it on start, as JSON).

    Attributes:
        model: Path of a GGUF file or of a folder with config.json.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        threads: CPU threads for torch; 0 means one a core.
        block_size: Tokens a KV block holds.
        kv_memory: Bytes for the KV cache; 0 lets the core choose.
        max_batch: Most sequences in one step.
        max_tokens_per_step: Token budget of one step.
        max_context: Longest sequence; 0 takes the model's.
        policy: ``fcfs`` or ``priority``.
        prefix_cache: Whether computed blocks are shared between requests.
        deterministic: Whether tokens and their probabilities depend on the request alone, to the
            bit, whatever else is computed.
        fair: Whether tenants share the engine evenly.
        pooling: What embeddings are made of: ``mean``, ``last`` or ``off``.
        speculation: ``ngram`` or ``off``.
        draft_tokens: Most tokens drafted for a sequence in a step.

    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    block_size: int = 16
    kv_memory: int = 0
    max_batch: int = 64
    max_tokens_per_step: int = 512
    max_context: int = 0
    policy: str = "fcfs"
    fair: bool = True
    prefix_cache: bool = True
    pooling: str = "mean"
    deterministic: bool = False
    speculation: str = "off"
    draft_tokens: int = 16


def core_config(engine: EngineConfig, model: str) -> CoreConfig:
    """What the core needs of the section ``[engine]``, for the model at a path."""
    names = [name for name in CoreConfig.__struct_fields__ if name != "model"]
    return CoreConfig(model=model, **{name: getattr(engine, name) for name in names})


def capacity(max_batch: int) -> int:
    """Requests to give a core at once: a full batch, and some that can begin when others end."""
    return max_batch + max(2, max_batch // 4)


# ------------------------------------------------------------------------- host to core


class Add(_Frame, frozen=True, kw_only=True):
    """Run a request. ``output``: tokens committed before, to go on from. ``embed``: only read it.

    ``request`` is any name that is unique in the core; frames about the request repeat it. The host
    names each claim apart, so that late frames of a lost claim cannot be taken for the next one's.
    """

    request: str
    params: SamplingParams
    messages: list[ChatMessage] | None = None
    text: str | None = None
    prompt: list[int] | None = None
    output: list[int] = []
    priority: int = 0
    queued: float = 0.0
    deadline: float | None = None
    salt: str | None = None
    tools: list[dict[str, Any]] | None = None
    template: dict[str, Any] = {}
    embed: Embedding | None = None
    tenant: str = ""


def asked(given: RequestQueued, name: str, params: SamplingParams, /, **more: Any) -> Add:
    """The frame for a request as it was queued; ``more`` are fields that depend on who runs it."""
    return Add(
        request=name,
        params=params,
        messages=given.messages,
        text=given.text,
        prompt=given.prompt,
        tools=given.tools,
        template=given.template,
        embed=given.embed,
        **more,
    )


class Cancel(_Frame, frozen=True, kw_only=True):
    """Forget a request and free what it holds."""

    request: str


class Stop(_Frame, frozen=True, kw_only=True):
    """End the process."""


# ------------------------------------------------------------------------- core to host


class Ready(_Frame, frozen=True, kw_only=True):
    """The model is loaded. ``weights`` is the digest of the files; times in seconds.

    ``pooling`` says how embeddings are made; ``off`` if they are not. ``cpu`` names the
    instructions that torch uses, ``torch`` is its version.
    """

    model: str
    weights: str
    architecture: str
    device: str
    dtype: str
    threads: int
    context: int
    blocks: int
    block_size: int
    parameters: int
    load_time: float
    eos: list[int]
    pooling: str = "off"
    deterministic: bool = False
    cpu: str = ""
    torch: str = ""


class Started(_Frame, frozen=True, kw_only=True):
    """The request is in the batch for the first time.

    ``waited_for`` says why not in the first step after it came: the words of ``request.started``.
    """

    request: str
    prompt_tokens: int
    cached_tokens: int
    time: float
    waited_for: list[str] = []


class Output(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """New tokens of one request. ``reason`` is ``stop`` or ``length`` on the last.

    ``text`` is what became certain: never half a character, never part of a stop string. The end
    of sequence token is not in ``tokens``' text. Joining the texts gives the whole output. Tokens
    that come together are committed together. ``prompt`` has the prompt's log probabilities.
    ``embedding`` is the vector that was asked for instead, as little-endian 32-bit floats.
    ``drafts``: how many tokens were drafted for it, and how many of them were right.
    """

    request: str
    tokens: list[int]
    text: str
    reason: str | None
    logprobs: list[TokenLogprobs] | None = None
    prompt: list[TokenLogprobs | None] | None = None
    embedding: bytes | None = None
    drafts: tuple[int, int] = (0, 0)


class Step(_Frame, frozen=True, kw_only=True):
    """What one step of the core produced.

    ``time`` is seconds since the epoch; ``used`` is how many KV blocks sequences own after it.
    """

    time: float
    outputs: list[Output]
    used: int = 0


class Preempted(_Frame, frozen=True, kw_only=True):
    """The request lost its blocks and waits to be computed again."""

    request: str
    reason: str


class Resumed(_Frame, frozen=True, kw_only=True):
    """The request is in the batch again."""

    request: str


class Failed(_Frame, frozen=True, kw_only=True):
    """The request ended badly: ``code`` as in ``request.failed``."""

    request: str
    code: str
    message: str


class Fatal(_Frame, frozen=True, kw_only=True):
    """The last frame of a core that ends because of an error. ``hint`` says what to do next."""

    message: str
    hint: str | None = None


ToCore = Add | Cancel | Stop
FromCore = Ready | Started | Step | Preempted | Resumed | Failed | Fatal
