"""Loading, watching and reloading a chat author's file."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

import app as el
from app.chat.app import ChatApp, load
from app.chat.errors import LoadError
from app.chat.watch import watch
from app.events.ids import uuid7
from app.events.store import EventStore
from tests.chat.conftest import serving

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

SAYS = """
from app import Message, on_message

@on_message
async def main(message):
    await Message("{}").send()
"""


@pytest.mark.parametrize("name", ["chat", "tools", "summarize", "job", "documents", "agent"])
def test_examples_load_and_are_short(name: str) -> None:
    path = EXAMPLES / f"{name}.py"
    assert "on_message" in load(path).hooks
    assert len(path.read_text().splitlines()) < 70


def test_two_apps_share_nothing(tmp_path: Path) -> None:
    file = tmp_path / "chat.py"
    file.write_text("from app import on_message\nstate = []\n@on_message\ndef f(): return state\n")
    first, second = load(file), load(file)
    assert first.hooks["on_message"]() is not second.hooks["on_message"]()
    assert (first.name, first.path) == ("chat", file)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("from app import on_message\ndef f(:\n", 2, "invalid syntax"),
        ("import nothing_like_this\n", 1, "ModuleNotFoundError"),
        ("x = 1\n\nraise SystemExit(3)\n", 3, "SystemExit"),
        ("from app import on_messsage\n", 1, "on_messsage"),
        ("from app import on_stop\n@on_stop\ndef f(): ...\n", 1, "no function has @on_message"),
        (
            "from app import on_message\n@on_message\ndef f(): ...\n@on_message\ndef g(): ...\n",
            4,
            "second @on_message",
        ),
        ("from app import on_message\n@on_message\ndef f(a, b): ...\n", 2, "at most one"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    before = set(sys.modules)
    with pytest.raises(LoadError, match=says) as caught:
        load(file)
    assert f"{file}:{line}: " in caught.value.message
    assert {m for m in set(sys.modules) - before if m.startswith("everlog_app")} == set()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("from app import on_mesage\n", "Did you mean on_message?"),
        ("from app import set_starters\n", "docs/chat.md lists the names that are there"),
        ("import app as cl\ncl.ChatSetings\n", "docs/chat.md lists the names that are there"),
        ("import chainlit as cl\n", "Write `import app as cl`"),
    ],
)
def test_names_that_are_not_there_get_advice(tmp_path: Path, text: str, hint: str) -> None:
    file = tmp_path / "chat.py"
    file.write_text(text)
    with pytest.raises(LoadError) as caught:
        load(file)
    assert hint in (caught.value.hint or "")


def test_tracebacks_begin_with_the_authors_code(tmp_path: Path) -> None:
    file = tmp_path / "chat.py"
    file.write_text("import json\njson.loads('{')\n")
    with pytest.raises(LoadError) as caught:
        load(file)
    first, frame = (caught.value.hint or "").splitlines()[:2]
    assert first.startswith("Traceback") and frame == f'  File "{file}", line 2, in <module>'


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none\.py: No such file"):
        load(tmp_path / "none.py")


def test_modules_beside_the_file_are_imported_anew(tmp_path: Path) -> None:
    helper, file = tmp_path / "my_helper.py", tmp_path / "chat.py"
    file.write_text(
        "from app import on_message\nimport my_helper\n@on_message\ndef f(): return my_helper.X\n"
    )
    for value in ("1", "2"):  # same length, same second
        helper.write_text(f"X = {value}\n")
        assert load(file).hooks["on_message"]() == int(value)
    helper.write_text("X = \n")
    with pytest.raises(LoadError, match=r"my_helper\.py:1"):
        load(file)
    assert sys.modules["my_helper"].X == 2  # the old app keeps what it has


def test_a_resumable_handler(tmp_path: Path) -> None:
    file = tmp_path / "chat.py"
    for argument, resumable in (("", False), ("()", False), ("(resumable=True)", True)):
        file.write_text(f"from app import on_message\n@on_message{argument}\ndef f(): ...\n")
        app = load(file)
        assert (app.resumable, app.waits, app.hooks["on_message"].__name__) == (
            resumable,
            False,
            "f",
        )


def test_outside_of_a_load_decorators_do_nothing() -> None:
    def function() -> None: ...

    assert el.on_message(function) is function


def test_importing_app_is_light() -> None:
    code = "import sys, app; app.__version__; print(sorted(m for m in sys.modules if 'app.' in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for name in el.__all__:
        assert getattr(el, name) is not None
    assert set(el.__all__) <= set(dir(el))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = el.nothing


async def test_a_saved_file_is_reloaded_and_a_broken_one_keeps_the_old(
    store: EventStore, tmp_path: Path
) -> None:
    file = tmp_path / "chat.py"
    file.write_text(SAYS.format("one"))
    errors: asyncio.Queue[LoadError] = asyncio.Queue()
    apps: asyncio.Queue[ChatApp] = asyncio.Queue()

    async with serving(store, load(file)) as chat:

        async def reloaded(app: ChatApp) -> None:
            await chat.runtime.reload(app)
            await apps.put(app)

        async def answer() -> str:
            return (await chat.ask(uuid7())).messages[-1].content

        watching = asyncio.create_task(watch(file, reloaded=reloaded, failed=errors.put))
        try:
            assert await answer() == "one"
            await asyncio.sleep(0.3)
            file.write_text(SAYS.format("two"))
            await asyncio.wait_for(apps.get(), 10)
            assert await answer() == "two"
            file.write_text("def f(:\n")
            error = await asyncio.wait_for(errors.get(), 10)
            assert f"{file}:1: " in error.message
            assert await answer() == "two"
            file.write_text(SAYS.format("three"))
            await asyncio.wait_for(apps.get(), 10)
            assert await answer() == "three"
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


CHAINLIT_LIKE = """
import app as cl

@cl.step(type="tool")
async def get_weather(city: str):
    async with cl.Step(name="fetch", type="tool") as s:
        s.input = city
        await cl.sleep(0.01)
        s.output = "sunny"
    return s.output

@cl.step(name="format")
def formatted(text):
    return text.upper()

@cl.on_chat_start
async def start():
    cl.user_session.set("message_history", [{"role": "system", "content": "Be kind."}])
    await cl.Message(content="Hello!", author="Bot").send()

@cl.on_message
async def main(message: cl.Message):
    message_history = cl.user_session.get("message_history")
    message_history.append({"role": "user", "content": message.content})
    msg = cl.Message(content="")
    await msg.send()
    weather = formatted(await get_weather("Paris"))
    for token in ["It ", "is ", weather]:
        await msg.stream_token(token)
    message_history.append({"role": "assistant", "content": msg.content})
    await msg.update()

@cl.on_stop
def stop():
    print("stopped")

@cl.on_chat_end
def end():
    print("bye")
"""


async def test_a_chainlit_app_runs_after_changing_its_import(
    store: EventStore, thread: str, tmp_path: Path
) -> None:
    file = tmp_path / "weather.py"
    file.write_text(CHAINLIT_LIKE)
    async with serving(store, load(file)) as chat:
        await chat.runtime.connected(thread, "local")
        await chat.settled(thread)
        state = await chat.ask(thread, "Weather?")
    async with serving(store, load(file)) as chat:
        state = await chat.ask(thread, "And now?")
    assert [(m.role, m.content) for m in state.messages] == [
        ("assistant", "Hello!"),
        ("user", "Weather?"),
        ("assistant", "It is SUNNY"),
        ("user", "And now?"),
        ("assistant", "It is SUNNY"),
    ]
    assert [m["content"] for m in state.session["message_history"]] == [
        "Be kind.",
        "Weather?",
        "It is SUNNY",
        "And now?",
        "It is SUNNY",
    ]
    assert [s.name for s in state.steps[:3]] == ["get_weather", "fetch", "format"]
    assert {r.status for r in state.runs} == {"completed"}


async def test_the_tools_example(store: EventStore, thread: str) -> None:
    async with serving(store, load(EXAMPLES / "tools.py")) as chat:
        good = await chat.ask(thread, "3 * (4 + 5) km")
        bad = await chat.ask(thread, "12 parsecs")
    assert good.messages[1].content == "3 * (4 + 5) km = **27000 m** (question 1)"
    convert, *tools = bad.steps[3:]
    assert {(s.name, s.status) for s in tools} >= {("look_up", "failed")}
    assert {s.parent for s in tools} == {convert.id}
    assert "parsecs" in bad.messages[-1].content


async def test_the_job_example_goes_on_after_a_crash(store: EventStore, thread: str) -> None:
    async with serving(store, load(EXAMPLES / "job.py")) as chat:
        await chat.post(thread, "2")
        await chat.until(thread, lambda s: "1 of 2" in s.messages[-1].content)
    async with serving(store, load(EXAMPLES / "job.py")) as chat:
        state = await chat.settled(thread)
    assert [m.content for m in state.messages[1:]] == [
        "1 of 2: 1,000,000,000,039",
        "The server was away; going on.",
        "2 of 2: 1,000,000,000,061",
        "Done.",
    ]
    assert [r.status for r in state.runs] == ["completed"]
