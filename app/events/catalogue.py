"""The catalogue: one struct per event type. ``docs/events.md`` is generated from it.

A field may be added with a default at any time. Any other change raises the type's schema
version and registers an upcaster (``app.events.upcast``). Unknown fields are ignored on reading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

__all__ = ["CATALOGUE", "Entry", "Payload", "event_type"]


class Payload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Base of all payloads. Defaults are left out of the stored JSON."""


class Entry(msgspec.Struct, frozen=True):
    """A registered event type."""

    payload: type[Payload]
    type: str
    schema: int


CATALOGUE: dict[str, Entry] = {}
_TYPE_OF: dict[type[Payload], Entry] = {}

P = TypeVar("P", bound=type[Payload])


def event(name: str, *, schema: int = 1) -> Callable[[P], P]:
    """Register a payload struct under an event type name."""

    def register(payload: P) -> P:
        entry = Entry(payload, name, schema)
        CATALOGUE[name] = entry
        _TYPE_OF[payload] = entry
        return payload

    return register


def event_type(payload: Payload | type[Payload]) -> Entry:
    """Return the catalogue entry of a payload or payload class."""
    return _TYPE_OF[payload if isinstance(payload, type) else type(payload)]


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong: ``kind`` is an exception class name or a code."""

    kind: str
    message: str
    traceback: str | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Token counts of one request.

    ``draft_tokens`` were computed ahead because repetition foretold them; ``accepted_tokens`` of
    them were right, and are part of the answer.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0


class Timings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a request's time went, in milliseconds."""

    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool that the model asked for in an earlier turn."""

    id: str
    name: str
    arguments: dict[str, Any] = {}


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One turn of a prompt as a chat template takes it.

    ``tool_calls`` is what an assistant asked for; a turn of the role ``tool`` answers the one
    named by ``tool_call_id``.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Structured(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The form an answer must have: exactly one of these.

    ``json_schema`` is a JSON schema (draft 2020-12), ``json_object`` any JSON object; JSON comes on
    one line. ``regex`` matches the whole answer. ``grammar`` is a context-free grammar, in
    llguidance's Lark syntax or in GBNF. ``choice`` lists all possible answers.
    """

    json_schema: dict[str, Any] | bool | None = None
    json_object: bool = False
    regex: str | None = None
    grammar: str | None = None
    choice: tuple[str, ...] | None = None


class TokenLogprobs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Natural log of the probability of a token, and the likeliest tokens at its place.

    ``top`` has ``(token id, logprob)``, the likeliest first, and of equals the smaller id. They are
    the model's own: the log-softmax of its logits before penalties, bias, temperature and masks.
    """

    logprob: float
    top: list[tuple[int, float]] = []


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to draw tokens. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 mean off.

    ``seed`` None lets the server choose one, which is then recorded. ``max_tokens`` None means
    "as far as the context reaches". Penalties follow the usual definitions: ``repetition_penalty``
    (CTRL, arXiv:1909.05858) divides positive and multiplies negative logits of tokens already in
    prompt or output; ``presence``/``frequency`` subtract from logits of tokens in the output.
    ``logit_bias`` adds to logits by token id (-100 bans, 100 forces). ``logprobs`` and
    ``prompt_logprobs`` ask for `TokenLogprobs` with so many alternatives (0: of the token alone).
    ``processors`` names plugins (entry point ``everlog.logits_processors``) with their options.

    No answer ends before ``min_tokens``, and with ``ignore_eos`` not by an end token. An answer
    that is ``structured`` ends where its form is complete, whatever these say.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    seed: int | None = None
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured: Structured | None = None
    processors: dict[str, Any] = {}


class Embedding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Asks for a vector that stands for the prompt, instead of an answer.

    ``dimensions`` cuts it to that length, and scales it to length 1 again; None takes all.
    """

    dimensions: int | None = None


# ------------------------------------------------------------------------------- threads


@event("thread.created")
class ThreadCreated(Payload, frozen=True, kw_only=True):
    """A conversation begins. ``owner`` is a user id."""

    owner: str
    title: str | None = None
    metadata: dict[str, Any] = {}


@event("thread.renamed")
class ThreadRenamed(Payload, frozen=True, kw_only=True):
    """The conversation got a (new) title."""

    title: str


@event("thread.forked")
class ThreadForked(Payload, frozen=True, kw_only=True):
    """This thread continues another one from a version on."""

    source: str
    version: int


@event("thread.shared")
class ThreadShared(Payload, frozen=True, kw_only=True):
    """Reading by others was allowed or withdrawn."""

    shared: bool


@event("thread.settings_changed")
class ThreadSettingsChanged(Payload, frozen=True, kw_only=True):
    """Chat settings of the thread, whole."""

    settings: dict[str, Any]


@event("thread.metadata_changed")
class ThreadMetadataChanged(Payload, frozen=True, kw_only=True):
    """What its owner keeps with the thread, whole; it begins with that of ``thread.created``."""

    metadata: dict[str, Any]


@event("thread.deleted")
class ThreadDeleted(Payload, frozen=True, kw_only=True):
    """The thread is hidden from lists; its events stay."""


@event("session.changed")
class SessionChanged(Payload, frozen=True, kw_only=True):
    """Keys of the thread's ``user_session`` that were set (``values``) or dropped (``removed``)."""

    values: dict[str, Any] = {}
    removed: list[str] = []


# ------------------------------------------------------------------------------ messages


@event("message.posted")
class MessagePosted(Payload, frozen=True, kw_only=True):
    """A whole message at once: what a user sent, or what a handler sent without streaming.

    ``role`` is ``user``, ``assistant`` or ``system``; ``parent`` the message before it;
    ``level`` is ``info`` or ``error`` (an error card).
    """

    message: str
    role: str
    content: str
    author: str | None = None
    parent: str | None = None
    step: str | None = None
    level: str = "info"
    metadata: dict[str, Any] = {}


@event("message.started")
class MessageStarted(Payload, frozen=True, kw_only=True):
    """A streamed message begins.

    With ``request`` its text is that request's ``tokens.generated`` (stored once, never repeated
    here) and it ends when the request ends. Without, ``message.delta`` events carry the text and
    ``message.completed`` ends it.
    """

    message: str
    role: str = "assistant"
    author: str | None = None
    parent: str | None = None
    step: str | None = None
    request: str | None = None
    metadata: dict[str, Any] = {}


@event("message.delta")
class MessageDelta(Payload, frozen=True, kw_only=True):
    """Text to add at the end of a streamed message."""

    message: str
    text: str


@event("message.completed")
class MessageCompleted(Payload, frozen=True, kw_only=True):
    """A streamed message ended. ``content`` is the whole text; None: the bound request's text."""

    message: str
    content: str | None = None


@event("message.edited")
class MessageEdited(Payload, frozen=True, kw_only=True):
    """The content was replaced."""

    message: str
    content: str
    metadata: dict[str, Any] = {}


@event("message.removed")
class MessageRemoved(Payload, frozen=True, kw_only=True):
    """The message is hidden from the conversation."""

    message: str


@event("message.feedback")
class MessageFeedback(Payload, frozen=True, kw_only=True):
    """A user's judgement: ``value`` is 1, -1 or 0 (withdrawn)."""

    message: str
    value: int
    comment: str | None = None


# ---------------------------------------------------------------------------------- runs


@event("run.started")
class RunStarted(Payload, frozen=True, kw_only=True):
    """One call of a handler begins. ``hook`` is ``on_message``, ``on_chat_start`` ...

    ``node`` names the process that runs it. A ``resumable`` run can be begun again, so
    another process takes it over (``run.resumed``); any other is interrupted by a crash.
    """

    run: str
    hook: str
    node: str
    message: str | None = None
    resumable: bool = False


@event("run.completed")
class RunCompleted(Payload, frozen=True, kw_only=True):
    """The handler returned."""

    run: str


@event("run.failed")
class RunFailed(Payload, frozen=True, kw_only=True):
    """The handler raised."""

    run: str
    error: ErrorInfo


@event("run.stopped")
class RunStopped(Payload, frozen=True, kw_only=True):
    """A user stopped it. From this event on the run writes nothing but its clean-up."""

    run: str


@event("run.interrupted")
class RunInterrupted(Payload, frozen=True, kw_only=True):
    """Its process went away. Its unfinished requests go on by themselves."""

    run: str
    reason: str


@event("run.resumed")
class RunResumed(Payload, frozen=True, kw_only=True):
    """Another process took a resumable run over."""

    run: str
    node: str


# --------------------------------------------------------------------------------- steps


@event("step.started")
class StepStarted(Payload, frozen=True, kw_only=True):
    """A step begins. ``parent`` is a step or None; ``kind`` is tool, llm, retrieval, run ..."""

    step: str
    name: str
    kind: str = "undefined"
    parent: str | None = None
    input: Any = None
    request: str | None = None


@event("step.delta")
class StepDelta(Payload, frozen=True, kw_only=True):
    """Text to add to a step's output."""

    step: str
    text: str


@event("step.completed")
class StepCompleted(Payload, frozen=True, kw_only=True):
    """A step returned."""

    step: str
    output: Any = None


@event("step.failed")
class StepFailed(Payload, frozen=True, kw_only=True):
    """A step raised."""

    step: str
    error: ErrorInfo
    output: Any = None


# ------------------------------------------------------------------------------ requests


@event("request.queued")
class RequestQueued(Payload, frozen=True, kw_only=True):
    """Everything needed to run the request, now or again.

    Either ``messages`` (rendered by the model's own chat template), ``text`` (a raw prompt) or
    ``prompt`` (token ids) is given. ``model`` None means the worker's model. ``deadline`` is
    nanoseconds since the epoch. A larger ``priority`` runs earlier. ``params.seed`` is always set.
    ``tools`` (in OpenAI's form) and ``template`` (variables by name) go to the chat template.
    ``metadata`` says how the request came and what its sender wants to find again with it.
    ``tenant`` is for whom: tenants share the engine evenly; None means the event's actor.
    With ``embed`` the prompt is only read, for ``request.embedded``; nothing is drawn.
    """

    request: str
    params: SamplingParams
    model: str | None = None
    messages: list[ChatMessage] | None = None
    text: str | None = None
    prompt: list[int] | None = None
    priority: int = 0
    deadline: int | None = None
    salt: str | None = None
    tools: list[dict[str, Any]] | None = None
    template: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    embed: Embedding | None = None
    tenant: str | None = None


@event("request.claimed")
class RequestClaimed(Payload, frozen=True, kw_only=True):
    """A worker took it. Later writes of the request carry this ``epoch``."""

    request: str
    epoch: int
    worker: str


@event("request.started")
class RequestStarted(Payload, frozen=True, kw_only=True):
    """It got its first slot in a batch. ``prompt_tokens`` counts the rendered prompt.

    ``weights`` is the digest of the model's files, ``dtype`` the arithmetic (``float32``,
    ``bfloat16``) and ``version`` that of Everlog: with the same, it can be run again.
    ``deterministic`` says whether others in the batch had no part in its bits; ``threads``, the
    instructions of the ``cpu`` that were used, and the version of ``torch`` have.

    ``waited_for`` says why it did not begin at once. In the log: ``worker`` (none was ready) or
    ``room`` (no worker had any). In the engine: ``batch`` (it was full), ``tokens`` (the step was),
    ``blocks`` (of the KV cache), ``prefix`` (another was computing the same prompt), and
    ``priority`` or ``share`` (of other tenants) if requests that came later began before it.
    """

    request: str
    epoch: int
    model: str
    weights: str
    prompt_tokens: int
    cached_tokens: int = 0
    resumed_tokens: int = 0
    queue_ms: float = 0.0
    dtype: str | None = None
    version: str | None = None
    deterministic: bool | None = None
    threads: int | None = None
    cpu: str | None = None
    torch: str | None = None
    waited_for: list[str] = []


@event("request.preempted")
class RequestPreempted(Payload, frozen=True, kw_only=True):
    """Its blocks were given away; it will be computed again."""

    request: str
    epoch: int
    reason: str


@event("request.resumed")
class RequestResumed(Payload, frozen=True, kw_only=True):
    """It is in the batch again after a preemption."""

    request: str
    epoch: int


@event("tokens.generated")
class TokensGenerated(Payload, frozen=True, kw_only=True):
    """A batch of committed output tokens.

    ``batch`` counts 0, 1, 2 ... over the whole request, across epochs; ``index`` is the position
    of the first token in the output; ``offsets`` are milliseconds since the first token of this
    request in this epoch, one for each token, so replay has the true rhythm. ``logprobs`` has an
    entry for each token if the request asked for it. ``prompt_logprobs``, with the first batch
    only, has an entry for each token of the prompt: null for the first, which follows nothing.
    """

    request: str
    epoch: int
    batch: int
    index: int
    tokens: list[int]
    text: str
    offsets: list[float] = []
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs | None] = []


@event("request.embedded")
class RequestEmbedded(Payload, frozen=True, kw_only=True):
    """The vector of a prompt; ``request.finished`` is committed with it.

    ``vector`` is base64 of ``dimensions`` little-endian 32-bit floats, of length 1 together.
    ``pooling`` says what it was made of: the hidden states of the last layer, their ``mean`` over
    all tokens, or those of the ``last`` token.
    """

    request: str
    epoch: int
    vector: str
    dimensions: int
    pooling: str


@event("request.finished")
class RequestFinished(Payload, frozen=True, kw_only=True):
    """It ended well: ``reason`` is ``stop`` or ``length``; ``text`` is the whole output.

    ``digest`` is the SHA-256 (hex) over the texts of its ``tokens.generated`` in order, so the
    deltas can be checked against it, and archived.
    """

    request: str
    epoch: int
    reason: str
    text: str
    usage: Usage
    timings: Timings
    batches: int
    digest: str


@event("request.failed")
class RequestFailed(Payload, frozen=True, kw_only=True):
    """It ended badly: ``code`` is ``timeout``, ``invalid``, ``context`` or ``error``."""

    request: str
    code: str
    message: str
    epoch: int = 0
    usage: Usage | None = None


@event("request.cancelled")
class RequestCancelled(Payload, frozen=True, kw_only=True):
    """Somebody stopped it. ``text`` is what had been committed by then."""

    request: str
    text: str | None = None
    usage: Usage | None = None


@event("request.abandoned")
class RequestAbandoned(Payload, frozen=True, kw_only=True):
    """Its worker lost it (crash, expired lease); it is queued again and goes on from its tokens."""

    request: str
    epoch: int
    worker: str
    reason: str


@event("response.deleted")
class ResponseDeleted(Payload, frozen=True, kw_only=True):
    """An answer is not to be found under ``/v1/responses`` any more; its events stay."""

    request: str


# ------------------------------------------------------------------------------- workers


@event("worker.started")
class WorkerStarted(Payload, frozen=True, kw_only=True):
    """An engine core is ready. Stream ``worker/<name>``."""

    worker: str
    model: str
    weights: str
    device: str
    pid: int
    context: int
    blocks: int


@event("worker.drained")
class WorkerDrained(Payload, frozen=True, kw_only=True):
    """It ended on purpose."""

    worker: str


@event("worker.crashed")
class WorkerCrashed(Payload, frozen=True, kw_only=True):
    """Its core process died and is being replaced."""

    worker: str
    reason: str
    requests: list[str] = []


@event("worker.lost")
class WorkerLost(Payload, frozen=True, kw_only=True):
    """It stopped renewing its leases."""

    worker: str


# -------------------------------------------------------------------------- files, batches


class LineError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is wrong with a line of a batch; ``param`` is the field to blame."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@event("file.created")
class FileCreated(Payload, frozen=True, kw_only=True):
    """A file was stored as an object. Stream ``batches``.

    ``owner`` is the actor whose file it is; ``purpose`` is ``batch`` or ``batch_output``.
    """

    file: str
    name: str
    purpose: str
    bytes: int
    sha256: str
    object: str
    owner: str


@event("file.deleted")
class FileDeleted(Payload, frozen=True, kw_only=True):
    """A file is gone, and so is its object. Stream ``batches``."""

    file: str


@event("batch.created")
class BatchCreated(Payload, frozen=True, kw_only=True):
    """The lines of a file are to be run. Stream ``batches``.

    ``window`` is the time they have, as its sender said it; ``expires`` is its end in nanoseconds
    since the epoch. Each line becomes requests with ids made of the batch's and its number, so no
    line is run twice, whoever runs it.
    """

    batch: str
    input: str
    endpoint: str
    window: str
    expires: int
    owner: str
    metadata: dict[str, Any] = {}


@event("batch.claimed")
class BatchClaimed(Payload, frozen=True, kw_only=True):
    """A node runs it from now on. Stream ``batches``."""

    batch: str
    node: str


@event("batch.started")
class BatchStarted(Payload, frozen=True, kw_only=True):
    """Its lines can all be read; there are ``total``. Stream ``batches``."""

    batch: str
    total: int


@event("batch.progressed")
class BatchProgressed(Payload, frozen=True, kw_only=True):
    """So many lines have ended well, and badly. Now and then. Stream ``batches``."""

    batch: str
    completed: int
    failed: int


@event("batch.cancelling")
class BatchCancelling(Payload, frozen=True, kw_only=True):
    """Somebody wants it to end: what is under way is cancelled. Stream ``batches``."""

    batch: str


@event("batch.finalizing")
class BatchFinalizing(Payload, frozen=True, kw_only=True):
    """All lines have ended; the files of results are written. Stream ``batches``."""

    batch: str


@event("batch.ended")
class BatchEnded(Payload, frozen=True, kw_only=True):
    """It is over: ``state`` is ``completed``, ``failed``, ``cancelled`` or ``expired``.

    ``output`` and ``error`` are the files with results of lines that ended well and badly, if
    there are any; ``errors`` is why it failed: lines that cannot be read. Stream ``batches``.
    """

    batch: str
    state: str
    completed: int = 0
    failed: int = 0
    output: str | None = None
    error: str | None = None
    errors: list[LineError] = []


# ----------------------------------------------------------------------------- users, log


@event("user.created")
class UserCreated(Payload, frozen=True, kw_only=True):
    """A user was seen for the first time."""

    user: str
    name: str | None = None


@event("user.login")
class UserLogin(Payload, frozen=True, kw_only=True):
    """A user logged in."""

    user: str


@event("user.logout")
class UserLogout(Payload, frozen=True, kw_only=True):
    """A user logged out."""

    user: str


@event("key.created")
class KeyCreated(Payload, frozen=True, kw_only=True):
    """An API key was made. Stream ``keys``.

    The key is shown to its owner once; the log has only ``hash``, the SHA-256 (hex) of it. It holds
    256 random bits, which nobody can guess, so the hash needs neither salt nor slowness. ``rate``
    is requests a minute, ``concurrency`` requests at once, ``expires`` nanoseconds since the epoch;
    None is no limit. ``user`` is whose conversations the key opens; None: its own.
    """

    key: str
    name: str
    hash: str
    scopes: list[str]
    rate: float | None = None
    concurrency: int | None = None
    expires: int | None = None
    user: str | None = None


@event("key.revoked")
class KeyRevoked(Payload, frozen=True, kw_only=True):
    """An API key is of no use any more, for ever. Stream ``keys``."""

    key: str


@event("log.sealed")
class LogSealed(Payload, frozen=True, kw_only=True):
    """Merkle root (hex) over the events ``first..last``, chained: ``root`` covers ``previous``."""

    first: int
    last: int
    merkle: str
    previous: str
    root: str


@event("log.redacted")
class LogRedacted(Payload, frozen=True, kw_only=True):
    """Payloads of these positions were erased.

    ``left`` has the SHA-256 (hex) of what is left of each, in the order of ``seqs``.
    """

    seqs: list[int]
    left: list[str]
    reason: str


@event("log.archived")
class LogArchived(Payload, frozen=True, kw_only=True):
    """Some of the events ``first..last`` moved to an object: ``events`` of them, ``bytes`` long."""

    first: int
    last: int
    object: str
    sha256: str
    events: int = 0
    bytes: int = 0


@event("log.restored")
class LogRestored(Payload, frozen=True, kw_only=True):
    """Some of the events ``first..last`` came back from an object, which is given up.

    What is left of it is in ``rest`` now (None: nothing is left).
    """

    first: int
    last: int
    object: str
    events: int
    rest: str | None = None
    sha256: str | None = None
