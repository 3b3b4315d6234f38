"""A conversation as it happened: events become beats, each with the moment it is due."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from app.cli.console import clean, counted, duration
from app.events import catalogue as c
from app.events.codec import PayloadError, decode
from app.events.envelope import Event

__all__ = ["Beat", "Screen", "Script", "play", "speaker"]

LOCAL = "local"
"""The user of a server without login."""

Write = Callable[[str, str], None]
Said = tuple[int, str, str, str | None, str]
"""Time, kind, text, message and tone of a beat."""


class Beat(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that shows at one moment.

    Attributes:
        at: Nanoseconds since the epoch.
        seq: Event it comes from.
        kind: ``message`` (a message begins; ``text`` is who speaks), ``text`` (goes on in
            ``message``), or ``note`` (a line about what the service did).
        text: What shows.
        message: Message it belongs to.
        tone: ``good``, ``bad`` or plain, for notes.
        idle: Whether nothing was running since the beat before it.

    """

    at: int
    seq: int
    kind: str
    text: str
    message: str | None = None
    tone: str = ""
    idle: bool = False


def speaker(role: str, author: str | None) -> str:
    """Return who a message is from, as people say it."""
    if role == "user":
        return "you" if author in (None, LOCAL) else author
    return author or role


def pieces(text: str, count: int) -> list[str]:
    """Split a batch's text into one piece a token: at words if they are as many, else evenly.

    The log keeps the text of a batch whole; only the moments of its tokens are kept one by one.
    """
    words = re.findall(r"\s*\S+|\s+$", text)
    if len(words) == count and "".join(words) == text:
        return words
    cuts = [len(text) * i // count for i in range(count + 1)]
    return [text[a:b] for a, b in itertools.pairwise(cuts)]


class Script:
    """Turns the events of one conversation, in order, into beats."""

    def __init__(self) -> None:
        self._bound: dict[str, str] = {}
        self._running: set[str] = set()
        self._begun: dict[str, tuple[str, int]] = {}
        self._texts: dict[str, str] = {}
        self._epoch: dict[str, tuple[int, int]] = {}
        self._last = 0

    def beats(self, event: Event) -> Iterator[Beat]:
        """Yield the beats of the next event; their times never go back."""
        try:
            payload = decode(event)
        except PayloadError:
            return
        idle = not self._running
        self._track(event, payload)
        for at, kind, text, message, tone in self._say(event, payload):
            self._last = max(self._last, at)
            if kind == "text" and message is not None:
                self._texts[message] = self._texts.get(message, "") + text
            yield Beat(self._last, event.seq, kind, text, message, tone, idle)
            idle = False

    def _track(self, event: Event, payload: Any) -> None:
        match payload:
            case c.RunStarted(run=name) | c.RequestQueued(request=name):
                self._running.add(name)
                self._begun[name] = ("", event.time)
            case c.RunCompleted(run=name) | c.RunFailed(run=name) | c.RunStopped(run=name):
                self._running.discard(name)
            case c.RunInterrupted(run=name) | c.RequestFinished(request=name):
                self._running.discard(name)
            case c.RequestFailed(request=name) | c.RequestCancelled(request=name):
                self._running.discard(name)
            case c.StepStarted():
                self._begun[payload.step] = (payload.name, event.time)
            case c.MessageStarted(request=str(request)):
                self._bound[request] = payload.message

    def _say(self, event: Event, payload: Any) -> Iterator[Said]:
        match payload:
            case c.MessagePosted():
                who = speaker(payload.role, payload.author)
                yield event.time, "message", who, payload.message, ""
                yield event.time, "text", payload.content, payload.message, ""
            case c.MessageStarted():
                who = speaker(payload.role, payload.author)
                yield event.time, "message", who, payload.message, ""
                if early := self._texts.get(payload.request or ""):
                    yield event.time, "text", early, payload.message, ""
            case c.MessageDelta():
                yield event.time, "text", payload.text, payload.message, ""
            case c.MessageCompleted(content=str(content)):
                yield from self._rest(event, payload.message, content)
            case c.TokensGenerated():
                yield from self._tokens(event, payload)
            case _:
                if isinstance(payload, c.RequestFinished) and payload.request in self._bound:
                    yield from self._rest(event, self._bound[payload.request], payload.text)
                note, tone = self._note(event, payload)
                if note:
                    yield event.time, "note", note, None, tone

    def _tokens(self, event: Event, payload: c.TokensGenerated) -> Iterator[Said]:
        message = self._bound.get(payload.request)
        if message is None:  # perhaps a message is bound to it later
            self._texts[payload.request] = self._texts.get(payload.request, "") + payload.text
            return
        offsets = payload.offsets or [0.0]
        epoch, first = self._epoch.get(payload.request, (-1, 0))
        if epoch != payload.epoch:
            first = event.time - int(offsets[0] * 1e6)
            self._epoch[payload.request] = (payload.epoch, first)
        for offset, piece in zip(offsets, pieces(payload.text, len(offsets)), strict=True):
            if piece:
                yield first + int(offset * 1e6), "text", piece, message, ""

    def _rest(self, event: Event, message: str, whole: str) -> Iterator[Said]:
        """Yield what no delta carried, such as after deltas were archived."""
        shown = self._texts.get(message, "")
        if whole.startswith(shown) and whole != shown:
            yield event.time, "text", whole[len(shown) :], message, ""

    def _note(self, event: Event, payload: Any) -> tuple[str, str]:
        match payload:
            case c.StepStarted():
                return f"▸ {payload.name}", ""
            case c.StepCompleted():
                return f"✓ {self._since(event, payload.step)}", "good"
            case c.StepFailed():
                return f"✗ {self._since(event, payload.step)}: {_error(payload.error)}", "bad"
            case c.RunFailed():
                return f"✗ {_error(payload.error)}", "bad"
            case c.RunStopped():
                return "■ stopped", ""
            case c.RunInterrupted():
                return f"✗ interrupted: {payload.reason}", "bad"
            case c.RunResumed():
                return f"↻ goes on in {payload.node}", ""
            case c.RequestAbandoned():
                return f"↻ {payload.worker} lost the request ({payload.reason}); it goes on", ""
            case c.RequestPreempted():
                return f"· paused: {payload.reason}", ""
            case c.RequestFinished():
                return f"✓ {_finished(payload)}", "good"
            case c.RequestFailed():
                return f"✗ {payload.code}: {payload.message}", "bad"
            case c.ThreadRenamed():
                return f"· title: {payload.title}", ""
            case c.MessageEdited():
                return f"· message edited: {payload.content}", ""
            case c.MessageRemoved():
                return "· message removed", ""
            case c.MessageFeedback():
                sign = {1: "good", -1: "bad", 0: "withdrawn"}.get(payload.value, "?")
                return f"· feedback: {sign} {payload.comment or ''}".rstrip(), ""
        return "", ""

    def _since(self, event: Event, step: str) -> str:
        name, start = self._begun.get(step, ("step", event.time))
        return f"{name} · {duration(event.time - start)}"


def _error(error: c.ErrorInfo) -> str:
    return f"{error.kind}: {error.message}"


def _finished(payload: c.RequestFinished) -> str:
    count, seconds = payload.usage.completion_tokens, payload.timings.decode_ms / 1e3
    rate = f" · {(count - 1) / seconds:.1f} tok/s" if count > 1 and seconds else ""
    return f"{payload.reason} · {counted(count, 'token')}{rate}"


class Screen:
    """Writes beats as a running text; ``write(text, style)`` takes it away."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._message: str | None = None
        self._speakers: dict[str | None, str] = {}
        self._fresh = True

    def show(self, beat: Beat) -> None:
        """Write one beat."""
        text = clean(beat.text)
        if beat.kind == "message":
            self._speakers[beat.message] = text
            return
        if beat.kind == "note":
            self._break()
            self._write(f"  {text}\n", beat.tone or "dim")
            return
        if beat.message != self._message:
            self._break()
            self._write(f"\n{self._speakers.get(beat.message, '?')}\n", "who")
            self._message = beat.message
        self._write(text, "")
        self._fresh = text.endswith("\n")

    def gap(self, ns: int) -> None:
        """Write that time passed which is not waited for."""
        self._break()
        self._write(f"\n  … {duration(ns)} later\n", "dim")

    def end(self) -> None:
        """Finish the last line."""
        self._break()

    def _break(self) -> None:
        if not self._fresh:
            self._write("\n", "")
        self._fresh = True


def play(
    beats: Iterable[Beat],
    screen: Screen,
    *,
    speed: float,
    idle: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Show beats in their rhythm, ``speed`` times as fast (0: without waiting).

    Waits in which nothing ran are cut to ``idle`` seconds and named. The clock is kept against
    the beginning, so that delays of the terminal do not add up.
    """
    due, last = clock(), None
    for beat in beats:
        wait = (beat.at - (beat.at if last is None else last)) / 1e9
        last = beat.at
        if beat.idle and wait > idle:
            screen.gap(int(wait * 1e9))
            wait = idle
        if speed:
            due += wait / speed
            sleep(max(0.0, due - clock()))
        screen.show(beat)
    screen.end()
