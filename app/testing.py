"""Tests of a chat author's file: the framework and its log, in memory, without server and model.

from app.testing import chat

async def test_the_weather() -> None:
    async with chat("chat.py", answers=["It is sunny."]) as talk:
        reply = await talk.send("What is the weather?")
    assert reply.text == "It is sunny."
    assert [step.name for step in reply.steps] == ["look_up"]
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import sha256
from math import sqrt
from pathlib import Path
from typing import Any

from app.chat.commands import PostCommand, StopCommand
from app.chat.hooks import ChatApp
from app.chat.loader import load
from app.chat.runtime import Runtime
from app.errors import EverlogError
from app.events.catalogue import (
    ErrorInfo,
    Payload,
    RequestEmbedded,
    RequestFailed,
    RequestFinished,
    RequestQueued,
    RequestStarted,
    Timings,
    TokensGenerated,
    Usage,
)
from app.events.codec import decode, new
from app.events.envelope import thread_stream
from app.events.ids import uuid7
from app.events.open import open_store
from app.events.presence import Presence
from app.events.store import Append, Claimed, EventStore, Fence
from app.projections.state import MessageState, RunState, StepState, ThreadState, empty
from app.projections.state import load as load_state

__all__ = ["Answers", "Reply", "Talk", "chat"]

Answers = Sequence[str] | Callable[[str], str]
"""What the model says: one text after the other, or a function of the prompt's last turn."""

USER = "tester"
WORKER = "testing"
DIMENSIONS = 64


class Reply:
    """What came of one message.

    Attributes:
        messages: What the handler said, in order, but for what it removed.
        steps: Its steps, in order, with ``name``, ``kind``, ``input``, ``output``, ``status`` ...
        status: ``completed``, ``failed``, ``stopped`` or ``interrupted``.
        error: Why it failed, with ``kind``, ``message`` and ``traceback``.

    """

    def __init__(self, state: ThreadState, run: RunState) -> None:
        self.messages: list[MessageState] = [
            m for m in state.messages if m.run == run.id and m.status != "removed"
        ]
        self.steps: list[StepState] = [s for s in state.steps if s.run == run.id]
        self.status: str = run.status
        self.error: ErrorInfo | None = run.error

    @property
    def text(self) -> str:
        """All that the handler said, with an empty line between messages."""
        return "\n\n".join(message.content for message in self.messages)

    def __repr__(self) -> str:
        return f"Reply({self.status}: {self.text!r})"


class Talk:
    """One conversation with the app.

    Attributes:
        app: The app; a test may replace what its module holds.
        prompts: What the model was asked, in order: messages, or the text of a completion.

    """

    def __init__(self, store: EventStore, app: ChatApp, answers: Answers) -> None:
        self.thread = uuid7()
        self.prompts: list[list[dict[str, str]] | str] = []
        self._store = store
        self.app = app
        self._answers = answers
        self._texts = iter(() if callable(answers) else answers)
        self._runtime: Runtime | None = None
        self._tasks: list[asyncio.Task[Any]] = []

    async def state(self) -> ThreadState:
        """The conversation as it is now: ``messages``, ``steps``, ``runs``, ``session`` ..."""
        return await load_state(self._store, self.thread) or empty(self.thread)

    async def send(self, text: str, *, timeout: float = 30) -> Reply:
        """Send a message, and wait until it is answered.

        Raises:
            TimeoutError: It was not, in so many seconds.

        """
        return await self.reply(await self.post(text), timeout=timeout)

    async def post(self, text: str) -> str:
        """Send a message without waiting for the answer; returns its id, for `reply`."""
        message = uuid7()
        command = PostCommand(id=uuid7(), thread=self.thread, content=text, message=message)
        await self._running.post(command, USER)
        return message

    async def reply(self, message: str, *, timeout: float = 30) -> Reply:
        """Wait until a message is answered. Raises as `send` does."""

        def run(state: ThreadState) -> RunState | None:
            return next((run for run in state.runs if run.message == message and run.ended), None)

        state = await self.until(run, timeout=timeout)
        found = run(state)
        assert found is not None
        return Reply(state, found)

    async def until(
        self, wanted: Callable[[ThreadState], object], *, timeout: float = 30
    ) -> ThreadState:
        """Wait until the conversation is as wanted. Raises as `send` does."""
        async with asyncio.timeout(timeout):
            while not wanted(state := await self.state()):
                await self._store.wait(after=state.version, stream=thread_stream(self.thread))
        return state

    async def stop(self) -> None:
        """Stop what runs, as the button does."""
        await self._running.stop(StopCommand(id=uuid7(), thread=self.thread), USER)

    async def restart(self) -> None:
        """Crash, and start again on the same log: nothing in memory is left but your modules."""
        await self.close()
        await self.open()

    async def open(self) -> None:
        """Start, and open the conversation, as a browser does."""
        presence = Presence(self._store, "testing", place="testing")
        runtime = self._runtime = Runtime(self._store, self.app, presence=presence)
        ready = asyncio.Event()
        running = asyncio.create_task(runtime.run(ready=ready.set))
        waiting = asyncio.create_task(ready.wait())
        self._tasks = [running, waiting, asyncio.create_task(self._answer_requests())]
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running  # it could not start, and says why
        await runtime.connected(self.thread, USER)
        await self.until(lambda state: all(run.ended or run.message for run in state.runs))

    async def close(self) -> None:
        """End at once, as a crash does."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._runtime = None

    # ------------------------------------------------------------------------- internal

    @property
    def _running(self) -> Runtime:
        if self._runtime is None:
            raise EverlogError("the conversation is over", hint="Talk inside of `async with chat`.")
        return self._runtime

    async def _answer_requests(self) -> None:
        after = await self._store.head()
        await self._store.expire(worker=WORKER)  # what was claimed before a restart
        while True:
            for claim in await self._store.claim(worker=WORKER, limit=64, lease=3600):
                queued = decode(claim.queued)
                assert isinstance(queued, RequestQueued)
                await self._write(claim, self._events(claim, queued))
            await self._store.wait(after=after)
            after = await self._store.head()

    def _events(self, claim: Claimed, queued: RequestQueued) -> list[Payload]:
        of: dict[str, Any] = {"request": claim.request, "epoch": claim.epoch}
        if queued.embed is not None:
            size = queued.embed.dimensions or DIMENSIONS
            vector = _vector(queued.text or "", size)
            return [
                RequestStarted(**of, model=WORKER, weights="", prompt_tokens=1),
                RequestEmbedded(**of, vector=vector, dimensions=size, pooling="mean"),
                _finished(of, ""),
            ]
        turns = [{"role": m.role, "content": m.content} for m in queued.messages or []]
        self.prompts.append(turns or queued.text or "")
        last = turns[-1]["content"] if turns else queued.text or ""
        text = self._answers(last) if callable(self._answers) else next(self._texts, None)
        if text is None:
            why = f"the test has no answer left for: {last}"
            return [RequestFailed(request=claim.request, code="error", message=why)]
        pieces = [piece for piece in text.replace(" ", "\0 ").split("\0") if piece]
        return [
            RequestStarted(**of, model=WORKER, weights="", prompt_tokens=1),
            *(
                TokensGenerated(**of, batch=n, index=n, tokens=[n], text=piece, offsets=[float(n)])
                for n, piece in enumerate(pieces)
            ),
            _finished(of, text, len(pieces)),
        ]

    async def _write(self, claim: Claimed, payloads: Sequence[Payload]) -> None:
        events = [new(p, actor=f"engine:{WORKER}", request=claim.request) for p in payloads]
        fence = Fence(claim.request, claim.epoch)
        await self._store.append(Append(stream=claim.stream, events=events, fence=fence))


@contextlib.asynccontextmanager
async def chat(file: str | Path | ChatApp, *, answers: Answers = ()) -> AsyncIterator[Talk]:
    """Talk with an app.

    Args:
        file: The author's file, as ``everlog serve`` takes it.
        answers: What the model says to ``llm`` calls: one text after the other, or a function that
            is given the last message of the prompt. Vectors of ``llm.embed`` are made of words:
            texts with the same ones are alike.

    Raises:
        LoadError: The file cannot be loaded.

    """
    app = file if isinstance(file, ChatApp) else load(file)
    async with open_store("memory:") as store:
        talk = Talk(store, app, answers)
        try:
            await talk.open()
            yield talk
        finally:
            await talk.close()


def _finished(of: dict[str, Any], text: str, count: int = 0) -> RequestFinished:
    return RequestFinished(
        **of,
        reason="stop",
        text=text,
        usage=Usage(prompt_tokens=1, completion_tokens=count),
        timings=Timings(),
        batches=count,
        digest=sha256(text.encode()).hexdigest(),
    )


def _vector(text: str, dimensions: int) -> str:
    """Counts of words, each at a place that its hash gives; of length 1, as events have it."""
    counts = [0.0] * dimensions
    for word in text.lower().split():
        place = int.from_bytes(sha256(word.strip(".,;:!?").encode()).digest()[:8])
        counts[place % dimensions] += 1
    length = sqrt(sum(count * count for count in counts)) or 1.0
    return b64encode(struct.pack(f"<{dimensions}f", *(c / length for c in counts))).decode()
