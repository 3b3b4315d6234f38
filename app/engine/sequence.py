"""A request inside the core: plain data that scheduler, block manager and runner share."""

from __future__ import annotations

import enum
from typing import NamedTuple

from app.engine.sampling import SamplingParams, TokenLogprobs

__all__ = ["Draw", "Pooling", "Sequence", "State", "Work"]


class State(enum.Enum):
    """Where a sequence is inside the core."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    ENDED = "ended"


class Pooling(NamedTuple):
    """How a prompt becomes a vector: ``mean`` or ``last``, and its length."""

    kind: str
    dimensions: int


class Sequence:
    """Tokens of one request and where their keys and values lie.

    Attributes:
        request: Id of the request.
        tokens: Prompt then output token ids.
        prompt_len: How many of ``tokens`` are prompt. Output committed before a crash counts as
            output.
        params: How to sample; ``params.seed`` is set.
        computed: How many of ``tokens`` have keys and values in the cache.
        tenant: For whom it is computed.
        blocks: Physical block numbers, in order of position; block i holds positions
            ``[i * block_size, (i + 1) * block_size)``.
        pooling: It is only read, and ends with a vector; None for all that are answered.
        digests: Of its full blocks, as far as they were wanted.
        recorded: How many of its blocks others can find.
        since: In which pass of the scheduler it came.
        waits: Why it could not begin when it was first in line.

    """

    __slots__ = (
        "arrival",
        "blocks",
        "cached",
        "computed",
        "deadline",
        "digests",
        "params",
        "pooling",
        "priority",
        "prompt_len",
        "recorded",
        "request",
        "salt",
        "since",
        "state",
        "tenant",
        "tokens",
        "waits",
    )

    def __init__(
        self,
        request: str,
        prompt: list[int],
        params: SamplingParams,
        *,
        output: list[int] | None = None,
        priority: int = 0,
        arrival: float = 0.0,
        deadline: float | None = None,
        salt: str | None = None,
        pooling: Pooling | None = None,
        tenant: str = "",
    ) -> None:
        self.request = request
        self.tokens = [*prompt, *(output or ())]
        self.prompt_len = len(prompt)
        self.params = params
        self.priority = priority
        self.arrival = arrival
        self.deadline = deadline
        self.salt = salt
        self.pooling = pooling
        self.tenant = tenant
        self.computed = 0
        self.cached = 0
        self.blocks: list[int] = []
        self.digests: list[bytes] = []
        self.recorded = 0
        self.state = State.WAITING
        self.since = 0
        self.waits = ""

    @property
    def scores_prompt(self) -> bool:
        """Whether log probabilities of its prompt are wanted, and were not given out yet."""
        return self.params.prompt_logprobs is not None and len(self.tokens) == self.prompt_len

    @property
    def takes_cached(self) -> bool:
        """Whether it may begin behind blocks that others computed: no place in them is wanted."""
        everywhere = self.pooling is not None and self.pooling.kind == "mean"
        return not (self.scores_prompt or everywhere)

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request!r}, {self.state.value}, computed {self.computed}"
            f"/{len(self.tokens)}, prompt {self.prompt_len}, blocks {self.blocks})"
        )


class Work(NamedTuple):
    """Compute ``length`` tokens of a sequence from position ``start`` on.

    All blocks for these positions are allocated. If the span reaches the last token, the runner
    also samples the next one.

    ``drafts`` may follow the last token, in a work of length 1: they are computed too, behind it,
    and as many of them as are what would have been drawn anyway become output.
    """

    sequence: Sequence
    start: int
    length: int
    drafts: tuple[int, ...] = ()

    @property
    def samples(self) -> bool:
        """Whether this work ends at the last token, so that a next token is drawn."""
        return self.ends and self.sequence.pooling is None

    @property
    def places(self) -> int:
        """How many tokens are computed, drafts among them."""
        return self.length + len(self.drafts)

    @property
    def ends(self) -> bool:
        """Whether this work ends at the last token."""
        return self.start + self.length == len(self.sequence.tokens)


class Draw(NamedTuple):
    """What follows the last token of a sequence.

    Attributes:
        tokens: At least one; several if the form of the answer leaves no choice, or if drafts
            were right.
        logprobs: One for each of the tokens, if they are wanted.
        prompt: One for each token of the prompt (None for the first), with the first output.
        error: Why the sequence cannot go on; then there are no tokens.
        embedding: The vector of a sequence that is only read; then there are no tokens.

    """

    tokens: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt: list[TokenLogprobs | None] | None = None
    error: str | None = None
    embedding: bytes | None = None
