"""Replay and timeline as text, against golden files (rewrite them with GOLDEN=1)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from app.cli.console import ago, clean, duration, size
from app.cli.replay import Beat, Screen, Script, pieces, play
from app.cli.timeline import render, spans
from app.events import catalogue as c
from app.events.codec import new
from app.events.envelope import Event
from app.projections.state import ThreadState, apply, empty
from tests.cli.story import START, THREAD, events

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def state(upto: int | None = None) -> ThreadState:
    found = empty(THREAD)
    for event in events()[:upto]:
        apply(found, event)
    return found


def beats(upto: int | None = None) -> list[Beat]:
    script = Script()
    return [beat for event in events()[:upto] for beat in script.beats(event)]


def shown(found: list[Beat], *, idle: float = 2.0) -> str:
    out: list[str] = []
    play(found, Screen(lambda text, style: out.append(text)), speed=0, idle=idle)
    return "".join(out)


def check(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def drawn(found: ThreadState, width: int) -> list[str]:
    return ["".join(text for text, _ in line).rstrip() for line in render(found, width=width)]


# ------------------------------------------------------------------------------- timeline


@pytest.mark.parametrize("width", [100, 64, 50, 24])
def test_timeline(width: int) -> None:
    check(f"timeline-{width}.txt", "\n".join(drawn(state(), width)) + "\n")


@pytest.mark.parametrize("width", range(16, 140, 7))
def test_timeline_fits_any_width_at_any_point(width: int) -> None:
    for upto in range(1, len(events()) + 1):
        for line in drawn(state(upto), width):
            assert cell_len(line) <= width, line


def test_timeline_of_what_still_runs() -> None:
    lines = "\n".join(drawn(state(10), 100))  # the first token is there
    assert "running" in lines
    assert "1 token\n" in lines


def test_timeline_of_nothing() -> None:
    assert "Nothing has run" in "\n".join(drawn(state(1), 80))


def test_spans_make_a_tree_with_phases() -> None:
    first, second = spans(state())
    step, request = first.children
    assert (step.label, step.end - step.start) == ("look_up (tool)", 50_000_000)
    assert [phase.kind for phase in request.children] == ["queue", "prefill", "decode"]
    assert request.children[0].start == request.start
    assert request.children[-1].end == request.end
    assert [second.status, second.children[0].children[0].label] == ["failed", "ask the sea"]


# --------------------------------------------------------------------------------- replay


def test_replay() -> None:
    check("replay.txt", shown(beats()))


def test_tokens_keep_their_moments() -> None:
    at = {beat.text: (beat.at - START) / 1e9 for beat in beats() if beat.kind == "text"}
    assert at["Paris"] == pytest.approx(0.200)
    assert at[" is"] == pytest.approx(0.225)
    assert at[" the"] == pytest.approx(0.250)
    assert at[" capital."] == pytest.approx(0.800)  # offsets begin anew in each epoch


def test_replay_is_the_conversation() -> None:
    found: dict[str | None, str] = {}
    for beat in beats():
        if beat.kind == "text":
            found[beat.message] = found.get(beat.message, "") + beat.text
    assert found == {message.id: message.content for message in state().messages}


def test_play_waits_as_long_as_it_took() -> None:
    now = 0.0
    moments: list[tuple[float, str]] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    screen = Screen(lambda text, style: moments.append((now, text)))
    play(beats(), screen, speed=2, idle=2.0, sleep=sleep, clock=lambda: now)
    when = {text: at for at, text in moments}
    assert when["Paris"] == pytest.approx(0.1)
    assert when[" capital."] == pytest.approx(0.4)
    assert when["And of Atlantis?"] == pytest.approx(0.41 + 1.0)  # idle time is cut to 2 s
    assert any("later" in text for _, text in moments)


def test_play_keeps_to_the_clock_when_writing_is_slow() -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def write(text: str, style: str) -> None:
        nonlocal now
        now += 0.001

    play(beats(17), Screen(write), speed=1, idle=2, sleep=sleep, clock=lambda: now)
    assert now == pytest.approx(0.82, abs=0.01)


def test_text_that_came_before_its_message_is_shown() -> None:
    """A handler may bind a message to a request that already has tokens."""
    early = [e for e in events() if e.type != "message.started" or e.version > 18]
    bind = new(c.MessageStarted(message="m2", request="q1"), run="r1")
    late = next(e for e in early if e.type == "request.abandoned")
    script, found = Script(), ""
    for event in early:
        if event is late:
            bound = Event(
                seq=event.seq,
                stream=event.stream,
                version=event.version,
                type=bind.type,
                schema=1,
                time=event.time,
                actor="system",
                request=None,
                run="r1",
                cause=None,
                data=bind.data,
            )
            found += "".join(b.text for b in script.beats(bound) if b.message == "m2" != b.text)
        found += "".join(
            b.text for b in script.beats(event) if b.message == "m2" and b.kind == "text"
        )
    assert found.removeprefix("assistant") == "Paris is the capital."


@given(st.text(max_size=60), st.integers(1, 20))
@settings(max_examples=200)
def test_pieces_make_the_text_again(text: str, count: int) -> None:
    found = pieces(text, count)
    assert len(found) == count
    assert "".join(found) == text


# ------------------------------------------------------------------------------ quantities


def test_stored_text_cannot_drive_the_terminal() -> None:
    assert clean("a\x1b[2Jb\x07\x9bc\r\x7f") == "a␛[2Jb␇\ufffdc␍\ufffd"
    assert clean("tab\tand\nline stay") == "tab\tand\nline stay"


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0.0 ms"),
        (3_210_000, "3.2 ms"),
        (12_000_000, "12 ms"),
        (999_600_000, "1.00 s"),
        (59_990_000_000, "59.99 s"),
        (245 * 10**9, "4m 05s"),
        (7_500 * 10**9, "2h 05m"),
        (10 * 86_400 * 10**9, "10 days"),
    ],
)
def test_durations(ns: int, text: str) -> None:
    assert duration(ns) == text


def test_other_quantities() -> None:
    assert [ago(s * 1e9) for s in (5, 60, 3 * 3600, 90 * 3600)] == [
        "5 s ago",
        "1 min ago",
        "3 h ago",
        "3 days ago",
    ]
    assert [size(n) for n in (12, 1_500, 98_300_000)] == ["12 B", "1.5 kB", "98.3 MB"]
