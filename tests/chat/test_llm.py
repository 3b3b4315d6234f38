"""``llm``: handlers that ask the engine, with the real engine and model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import app as el
from app.chat import embedding
from app.chat.app import builtin, load
from app.chat.hooks import ChatApp
from app.chat.sampling import Sampling
from app.config import ChatConfig, EngineConfig
from app.engine.host import EngineHost
from app.engine.sampling import SamplingParams
from app.errors import InputError
from app.events.ids import uuid7
from app.events.open import open_store
from app.events.store import EventStore
from app.projections.state import ThreadState
from tests.chat.conftest import app_of, serving

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


#: Seconds a run with the model may take on a busy machine.
PATIENCE = 120
CONTEXT = 512


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop for the module, so that its tests can share an engine."""
    return "asyncio"


@pytest.fixture(scope="module")
async def engine(model: str) -> AsyncIterator[tuple[EventStore, EngineHost]]:
    """A log with an engine at work on it."""
    config = EngineConfig(model=model, threads=2, max_context=CONTEXT)
    async with open_store("memory:") as store:
        host = EngineHost(store, config, worker="test")
        ready = asyncio.Event()
        task = asyncio.create_task(host.run(ready=ready.set))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            await task
        try:
            yield store, host
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


# -------------------------------------------------------------------- without an engine


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "x", "role": 1}]}, "messages[0].role"),
        ({"messages": "x", "temperature": -1}, "llm.temperature"),
        ({"messages": "x", "max_tokens": 0}, "llm.max_tokens"),
        ({"messages": "x", "top_p": 0}, "llm.top_p"),
        ({"messages": "x", "seed": -1}, "llm.seed"),
        ({"messages": "x", "timeout": 0}, "timeout"),
        ({"messages": "x", "temprature": 1}, "llm.temprature"),
        ({"messages": "x", "top_p": "high"}, "llm.top_p"),
        ({"messages": "x", "stop_token_ids": ["<s>"]}, "llm.stop_token_ids[0]"),
        ({"messages": "x", "logit_bias": {"yes": 1}}, "llm.logit_bias"),
        ({"messages": "x", "logprobs": 21}, "llm.logprobs"),
        ({"messages": "x", "structured": el.Structured(regex="(")}, "llm.structured.regex"),
    ],
)
async def test_bad_arguments_are_named(
    thread: str, arguments: dict[str, object], field: str
) -> None:
    caught: list[InputError] = []

    async def on_message() -> None:
        try:
            el.llm.chat(**arguments)  # type: ignore[arg-type]
        except InputError as error:
            caught.append(error)

    async with open_store("memory:") as store, serving(store, app_of(on_message=on_message)) as c:
        await c.ask(thread)
        assert [error.field for error in caught] == [field]
        assert "request.queued" not in await c.types(thread)


async def test_whatever_can_be_asked_of_the_engine_is_queued(
    store: EventStore, thread: str
) -> None:
    form = el.Structured(choice=("yes", "no"))

    async def on_message() -> None:
        every = {"min_p": 0.1, "min_tokens": 2, "stop_token_ids": [3], "ignore_eos": True}
        generation = el.llm.chat(
            "Is it?", stop=["a", "b"], logit_bias={5: -100}, logprobs=2, prompt_logprobs=0,
            structured=form, processors={"calm": {"strength": 2}}, **every,  # type: ignore[arg-type]
        )  # fmt: skip
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await generation

    async with serving(store, app_of(on_message=on_message)) as chat:
        await chat.ask(thread)
        (queued,) = await chat.payloads(thread, "request.queued")
    params = queued.params
    assert (params.min_p, params.min_tokens, params.ignore_eos) == (0.1, 2, True)
    assert (params.stop, params.stop_token_ids) == (("a", "b"), (3,))
    assert (params.logit_bias, params.logprobs, params.prompt_logprobs) == ({5: -100.0}, 2, 0)
    assert (params.structured, params.processors) == (form, {"calm": {"strength": 2}})
    assert params.temperature == ChatConfig().temperature and params.seed is not None


def test_every_parameter_of_the_engine_is_a_keyword_of_llm() -> None:
    assert set(Sampling.__annotations__) == set(SamplingParams.__struct_fields__)


async def test_a_bound_message_and_its_request_are_one_append(
    store: EventStore, thread: str
) -> None:
    async def on_message() -> None:
        async with el.Step("ask", type="llm"):
            answer = el.llm.chat("hi", seed=7, temperature=0.5, stop="\n", priority=3, timeout=60)
            await el.Message().stream_from(answer)

    async with serving(store, app_of(on_message=on_message)) as chat:
        await chat.post(thread)
        state = await chat.until(thread, lambda s: s.requests)
        events = await chat.events(thread)
        at = [e.type for e in events].index("message.started")
        assert [e.type for e in events[at - 1 : at + 2]] == [
            "step.started",
            "message.started",
            "request.queued",
        ]
        (queued,) = await chat.payloads(thread, "request.queued")
        assert events[at + 1].request == queued.request
        assert queued.params.seed == 7
        assert queued.params.max_tokens == ChatConfig().max_tokens
        assert (queued.params.temperature, queued.params.stop) == (0.5, ("\n",))
        assert (queued.priority, queued.messages[0].role) == (3, "user")
        assert queued.deadline > events[0].time
        assert state.messages[1].request == state.steps[0].request == queued.request
        await chat.stop(thread)
        state = await chat.settled(thread)
    assert state.requests[0].state == "cancelled"
    assert state.messages[1].status == "stopped"
    assert (state.runs[0].status, state.steps[0].status) == ("stopped", "stopped")


async def test_requests_a_handler_leaves_behind_are_cancelled(
    store: EventStore, thread: str
) -> None:
    async def on_message() -> None:
        generation = el.llm.complete("Once upon", max_tokens=5)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await generation.text()

    async with serving(store, app_of(on_message=on_message)) as chat:
        await chat.ask(thread)
        state = await chat.until(thread, lambda s: s.requests[0].state == "cancelled")
    assert state.runs[0].status == "completed"


async def test_a_request_in_a_step_that_is_already_written_gets_its_own_step(
    store: EventStore, thread: str
) -> None:
    async def on_message() -> None:
        async with el.Step("work", type="tool"):
            await el.Message("first").send()
            for _ in range(2):
                generation = el.llm.chat("hi")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await generation
                await generation.cancel()
                await generation

    async with serving(store, app_of(on_message=on_message)) as chat:
        state = await chat.ask(thread)
    work, *calls = state.steps
    assert work.request is None
    assert [s.request for s in calls] == [r.id for r in state.requests]
    assert {(s.kind, s.parent, s.status) for s in calls} == {("llm", work.id, "completed")}


# ----------------------------------------------------------------------- with the model


def every_way(seen: dict[str, object]) -> ChatApp:
    async def on_message(message: el.Message) -> None:
        bound = el.llm.chat("What is the capital of France?", temperature=0, max_tokens=20)
        said = await el.Message().stream_from(bound)
        seen["bound"] = (said.content, bound.finish_reason, bound.usage)

        again = el.llm.chat([{"role": "user", "content": "What is the capital of France?"}],
                            temperature=0, max_tokens=20)  # fmt: skip
        seen["pieces"] = [piece async for piece in again]
        seen["again"] = await again

        async with el.Step("call", type="llm") as s:
            s.output = await el.llm.complete("1, 2, 3, 4,", max_tokens=8, temperature=0, stop=", 7")
            seen["complete"] = s.output

        seen["form"] = await el.llm.chat(
            "What is the capital of France?", structured=el.Structured(choice=("London", "Paris"))
        )

        forwarded = el.Message()
        async for piece in el.llm.chat("Say hi.", temperature=0.8, seed=5, max_tokens=10):
            await forwarded.stream_token(piece)
        await forwarded.send()
        seen["forwarded"] = forwarded.content

        try:
            await el.llm.chat("x " * 20_000)
        except el.LLMError as error:
            seen["error"] = error.code
        await asyncio.gather(*(el.llm.chat(f"Count to {n}", max_tokens=8) for n in range(4)))

    return app_of(on_message=on_message)


Engine = tuple[EventStore, EngineHost]


@pytest.mark.model
async def test_every_way_to_ask_the_model(engine: Engine, thread: str) -> None:
    seen: dict[str, object] = {}
    async with serving(engine[0], every_way(seen)) as chat:
        await chat.post(thread)
        state = await chat.settled(thread, seconds=PATIENCE)
        types = await chat.types(thread)
    assert state.runs[0].status == "completed", state.runs[0].error
    content, reason, usage = seen["bound"]  # type: ignore[misc]
    assert "Paris" in content
    assert reason in ("stop", "length")
    assert usage.completion_tokens > 0
    assert "".join(seen["pieces"]) == seen["again"] == content  # type: ignore[arg-type]
    assert isinstance(seen["complete"], str) and " 5" in seen["complete"]
    assert "7" not in seen["complete"]
    assert seen["form"] in ("London", "Paris")
    assert seen["error"] == "context"
    bound, forwarded = [m for m in state.messages if m.role == "assistant"][:2]
    assert (bound.content, bound.status) == (content, "done")
    assert (forwarded.content, forwarded.request) == (seen["forwarded"], None)
    assert state.steps[0].request in {r.id for r in state.requests}
    assert types.count("message.completed") == 1  # the forwarded one; the bound one has none
    assert [r.state for r in state.requests].count("finished") == 9


@pytest.mark.model
async def test_vectors_of_texts_come_in_order(
    engine: Engine, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "WINDOW", 3)
    texts = ["A cat sits on the mat.", "Shares fell on Monday.", "The mat has a cat on it."] * 2
    seen: dict[str, object] = {}

    async def on_message() -> None:
        seen["vectors"] = await el.llm.embed(texts)
        seen["short"] = await el.llm.embed(texts[0], dimensions=16)
        try:
            await el.llm.embed(["fine", "x " * 2000])
        except el.LLMError as error:
            seen["error"] = (error.code, error.message.partition(":")[0])

    async with serving(engine[0], app_of(on_message=on_message)) as chat:
        await chat.post(thread)
        state = await chat.settled(thread, seconds=PATIENCE)
    assert state.runs[0].status == "completed", state.runs[0].error
    cat, shares, mat, *again = seen["vectors"]  # type: ignore[misc]
    assert sum(a * a for a in cat) == pytest.approx(1, abs=1e-5)
    assert sum(a * b for a, b in zip(cat, mat, strict=True)) > sum(
        a * b for a, b in zip(cat, shares, strict=True)
    )
    for one, two in zip((cat, shares, mat), again, strict=True):
        assert one == pytest.approx(two, abs=1e-4)
    (short,) = seen["short"]  # type: ignore[misc]
    assert len(short) == 16
    assert seen["error"] == ("context", "texts[1]")
    assert state.requests == []


@pytest.mark.model
async def test_the_built_in_chat_stops_and_goes_on(engine: Engine, thread: str) -> None:
    store, _ = engine
    long, ask = "Write a long story about the sea.", "What is the capital of France?"
    app = builtin(ChatConfig(max_tokens=40))

    async with serving(store, app, chat=ChatConfig(max_tokens=40)) as chat:
        await chat.post(thread, ask)
        state = await chat.settled(thread, seconds=PATIENCE)
        assert "Paris" in state.messages[-1].content
        await chat.post(thread, long)
        await chat.until(thread, said_something, seconds=PATIENCE)
        await chat.stop(thread)
        state = await chat.settled(thread, runs=2)
        assert state.messages[-1].status == "stopped"
        assert state.messages[-1].content == state.requests[-1].text
        cut = uuid7()
        await chat.post(cut, long)
        await chat.until(cut, said_something, seconds=PATIENCE)
    # The runtime is gone, as after a crash; the engine goes on by itself.
    async with serving(store, app) as chat:
        state = await chat.settled(cut, seconds=PATIENCE)
        types = await chat.types(cut)
    assert "run.resumed" in types
    assert [r.status for r in state.runs] == ["completed"]
    assert state.requests[0].state == "finished"
    assert state.messages[-1].content == state.requests[0].text
    assert (state.messages[-1].status, len(state.messages)) == ("done", 2)


def said_something(state: ThreadState) -> bool:
    last = state.messages[-1]
    # A sampled answer may be short: then it is enough that it is whole.
    return last.role == "assistant" and (len(last.content) > 10 or last.status == "done")


@pytest.mark.model
@pytest.mark.parametrize("known", [True, False])
async def test_the_built_in_chat_drops_the_oldest_turns(
    engine: Engine, thread: str, known: bool
) -> None:
    store, host = engine

    def context() -> int | None:
        return host.model.context if known and host.model else None

    app = builtin(ChatConfig(max_tokens=4), context=context)
    async with serving(store, app, chat=ChatConfig(max_tokens=4)) as chat:
        for n in range(4):
            await chat.post(thread, f"Number {n}: " + "tell me more about it, please. " * 20)
            state = await chat.settled(thread, runs=n + 1, seconds=PATIENCE)
            assert state.runs[-1].status == "completed", state.runs[-1].error
        await chat.post(thread, "x y " * 2000)
        state = await chat.settled(thread, runs=5, seconds=PATIENCE)
        # Without knowing the length, it learns it from the engine's refusal and tries again.
        refused = [r for r in state.requests if r.code == "context"]
        assert len(refused) == 1 if known else len(refused) > 2
    assert state.runs[-1].status == "failed"
    assert "longer than the model can read" in state.messages[-1].content


@pytest.mark.model
@pytest.mark.parametrize("name", ["chat", "summarize"])
async def test_the_llm_examples(engine: Engine, thread: str, name: str) -> None:
    text = "\n\n".join(f"Paragraph {n}: " + "the sea is blue. " * 8 for n in range(3))
    app = load(EXAMPLES / f"{name}.py")
    app.hooks["on_message"].__globals__.update(PART=300, NOTE=20)  # as many steps, less to read
    async with serving(engine[0], app) as chat:
        await chat.post(thread, "Hello!" if name == "chat" else text)
        await chat.until(thread, said_something, seconds=PATIENCE)
        await chat.stop(thread)  # its last answer may be long
        state = await chat.settled(thread)
    assert state.runs[0].status in ("stopped", "completed")
    if name == "summarize":
        assert {"split", "summarize", "read"} == {s.name for s in state.steps}
        assert {s.status for s in state.steps} == {"completed"}
        notes = [s for s in state.steps if s.name == "summarize"]
        assert len(notes) == 2 and all(s.request for s in notes)


@pytest.mark.model
async def test_the_documents_example(engine: Engine, thread: str, tmp_path: Path) -> None:
    (tmp_path / "cats.md").write_text("Cats sleep for sixteen hours a day, and like fish.")
    (tmp_path / "shares.txt").write_text("Shares fell on Monday, after the bank raised its rates.")
    (tmp_path / "picture.png").write_bytes(b"no text")
    app = load(EXAMPLES / "documents.py")
    app.hooks["on_message"].__globals__.update(FOLDER=tmp_path, BEST=1)
    async with serving(engine[0], app) as chat:
        await chat.post(thread, "For how many hours do cats sleep?")
        state = await chat.settled(thread, seconds=PATIENCE)
    assert state.runs[0].status == "completed", state.runs[0].error
    assert [(s.name, s.kind) for s in state.steps] == [
        ("read_documents", "embedding"),
        ("find", "retrieval"),
    ]
    assert "sixteen" in state.messages[1].content or "16" in state.messages[1].content
    assert state.messages[2].content == "Sources: `cats.md`"
