"""A conversation as a tree with bars: runs, steps, and the phases of each request."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
from rich.cells import cell_len, set_cell_size

from app.cli.console import clean, counted, duration
from app.events.catalogue import ErrorInfo
from app.projections.state import RequestState, RunState, StepState, ThreadState

__all__ = ["Cell", "render"]

Cell = tuple[str, str]
"""Text, and its style: empty, ``dim``, ``good``, ``bad``, ``who``, or a phase."""

PHASES = {"queue": "░", "prefill": "▒", "decode": "█"}
BAR = {"run": "━", "step": "▬"}
NO_BARS, NO_INFO = 64, 44


class Span(msgspec.Struct):
    """A node of the tree. ``marks`` are parts of its bar: (texture, start, end), times in ns."""

    label: str
    kind: str
    start: int
    end: int
    status: str = ""
    info: str = ""
    marks: list[tuple[str, int, int]] = []
    children: list[Span] = []

    def last(self) -> int:
        """When the last thing under it ended: a request may outlive its run."""
        return max([self.end, *(child.last() for child in self.children)])


def render(state: ThreadState, *, width: int) -> list[list[Cell]]:
    """Return the lines of the timeline, none wider than ``width`` cells.

    Each run has a time axis of its own, so that a short one is as readable as a long one. Below
    64 columns there are no bars, below 44 only names and durations.
    """
    roots = spans(state)
    lines: list[list[Cell]] = [_heading(state, roots, width), []]
    rows = [list(_rows(root, "", "")) for root in roots]
    columns = _columns([row for group in rows for row in group], width)
    for root, group in zip(roots, rows, strict=True):
        lines += _table(group, root.start, max(root.last(), root.start + 1), columns)
        lines.append([])
    if any(state.requests) and width >= NO_BARS:
        lines.append([(f"{mark} {name}  ", name) for name, mark in PHASES.items()])
    elif not roots:
        lines.append([(_fit("Nothing has run in this conversation yet.", width), "dim")])
    return lines


def _heading(state: ThreadState, roots: list[Span], width: int) -> list[Cell]:
    unnamed = "untitled" if state.messages or state.runs or not state.requests else "request"
    title = clean(state.title or unnamed).replace("\n", " ")
    busy = sum(root.last() - root.start for root in roots)
    messages, runs = counted(len(state.messages), "message"), counted(len(state.runs), "run")
    facts = f"  {messages}, {runs}, {duration(busy)}"
    title = _fit(title, max(8, width - cell_len(facts)))
    return [(title, "who"), (_fit(facts, width - cell_len(title)), "dim")]


# ---------------------------------------------------------------------------------- spans


def spans(state: ThreadState) -> list[Span]:
    """Return the roots of the tree: runs, and what belongs to none, in order."""
    owned: set[str] = {step.request for step in state.steps if step.request}
    steps: dict[str | None, list[StepState]] = {}
    for step in state.steps:
        steps.setdefault(step.parent or step.run, []).append(step)
    requests: dict[str | None, list[RequestState]] = {}
    for request in state.requests:
        if request.id not in owned:
            requests.setdefault(request.run, []).append(request)
    tree = _Tree(state, steps, requests)
    known = {run.id for run in state.runs}
    roots = [(run.version, tree.run(run)) for run in state.runs]
    for parent in (set(steps) | set(requests)) - known - {step.id for step in state.steps}:
        roots += tree.under(parent)
    return [span for _, span in sorted(roots, key=lambda pair: pair[0])]


class _Tree:
    def __init__(
        self,
        state: ThreadState,
        steps: dict[str | None, list[StepState]],
        requests: dict[str | None, list[RequestState]],
    ) -> None:
        self.now = state.updated
        self.steps = steps
        self.requests = requests
        self.by_id = {request.id: request for request in state.requests}

    def under(self, parent: str | None) -> list[tuple[int, Span]]:
        """Steps and requests under a run or step, with their versions."""
        found = [(step.version, self.step(step)) for step in self.steps.get(parent, ())]
        found += [(r.version, self.request(r)) for r in self.requests.get(parent, ())]
        return sorted(found, key=lambda pair: pair[0])

    def run(self, run: RunState) -> Span:
        clock = time.strftime("%H:%M:%S", time.localtime(run.started / 1e9))
        span = self._span(run.hook, "run", run.started, run.ended, run.status, run.error)
        span.info = f"{clock} {span.info}".rstrip()
        span.children = [child for _, child in self.under(run.id)]
        return span

    def step(self, step: StepState) -> Span:
        label = step.name if step.kind in ("undefined", "run") else f"{step.name} ({step.kind})"
        span = self._span(label, "step", step.started, step.ended, step.status, step.error)
        children = self.under(step.id)
        if step.request in self.by_id:
            request = self.by_id[step.request]
            children = sorted([*children, (request.version, self.request(request))])
        span.children = [child for _, child in children]
        return span

    def request(self, request: RequestState) -> Span:
        label = "embedding" if request.embeds else "request"
        span = self._span(label, "request", request.queued, request.ended, request.state)
        if span.status == "finished":
            span.info = request.reason or ""
            if request.dimensions is not None:
                span.info = counted(request.dimensions, "dimension")
        if request.epoch > 1:
            span.info += f", claimed {request.epoch} times"
        for reason in dict.fromkeys(request.preemptions):
            times = request.preemptions.count(reason)
            span.info += f", preempted{f' {times} times' if times > 1 else ''}: {reason}"
        if request.state == "failed" and request.code:
            span.info += f": {request.code}"
        marks = dict(self._phases(request))
        span.marks = [(PHASES[name], start, end) for name, (start, end) in marks.items()]
        count = request.usage.completion_tokens if request.usage else len(request.tokens)
        waited = request.waited_for
        notes = {
            "queue": "for " + ", ".join(waited) if waited else "",
            "prefill": counted(request.prompt_tokens, "token"),
        }
        if "decode" in marks:
            seconds = (marks["decode"][1] - marks["decode"][0]) / 1e9
            if request.timings is not None and request.timings.decode_ms:
                seconds = request.timings.decode_ms / 1e3
            rate = f", {(count - 1) / seconds:.1f} tok/s" if count > 1 and seconds else ""
            notes["decode"] = counted(count, "token") + rate
        for name, (start, end) in marks.items():
            mark = [(PHASES[name], start, end)]
            span.children.append(Span(name, name, start, end, info=notes.get(name, ""), marks=mark))
        return span

    def _phases(self, request: RequestState) -> Iterator[tuple[str, tuple[int, int]]]:
        end = request.ended or self.now
        started, first = request.started, request.first_token
        yield "queue", (request.queued, started or end)
        if started is not None:
            yield "prefill", (started, first or end)
        if first is not None:
            yield "decode", (first, max(first, end))

    def _span(
        self,
        label: str,
        kind: str,
        start: int,
        end: int | None,
        status: str,
        error: ErrorInfo | None = None,
    ) -> Span:
        span = Span(label, kind, start, self.now if end is None else end, status)
        span.info = "" if status in ("completed", "finished") else status
        if error is not None:
            span.info += f": {error.kind}"
        span.marks = [(BAR.get(kind, "█"), span.start, span.end)]
        return span


# ----------------------------------------------------------------------------------- rows


def _rows(span: Span, lead: str, below: str) -> Iterator[tuple[str, Span]]:
    yield lead, span
    for place, child in enumerate(span.children):
        last = place == len(span.children) - 1
        yield from _rows(
            child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")
        )


class _Columns(msgspec.Struct, frozen=True):
    name: int
    bar: int
    time: int
    info: int


def _label(lead: str, span: Span) -> str:
    return lead + clean(span.label).replace("\n", " ")


def _columns(rows: list[tuple[str, Span]], width: int) -> _Columns:
    """Share the width out: durations whole, names and notes as wanted, bars what is left."""
    time_width = max((len(duration(s.end - s.start)) for _, s in rows), default=0) + 2
    name = max((cell_len(_label(lead, s)) for lead, s in rows), default=0)
    info = max((cell_len(s.info) for _, s in rows), default=0) + 2
    if width < NO_INFO:
        return _Columns(min(name, max(4, width - time_width)), 0, time_width, 0)
    if width < NO_BARS:
        name = min(name, (width - time_width) // 2)
        return _Columns(name, 0, time_width, width - time_width - name)
    info = min(info, width // 3)
    room = width - time_width - info - 1
    name = min(name, room // 2)
    return _Columns(name, room - name, time_width, info)


def _table(
    rows: list[tuple[str, Span]], start: int, end: int, columns: _Columns
) -> list[list[Cell]]:
    lines = []
    for lead, span in rows:
        style = "who" if span.kind == "run" else ""
        line: list[Cell] = [(_fit(_label(lead, span), columns.name, pad=True), style)]
        if columns.bar:
            line += [(" ", ""), *_bar(span, start, end, columns.bar)]
        line.append((duration(span.end - span.start).rjust(columns.time), ""))
        if columns.info and span.info:
            line.append((_fit("  " + clean(span.info), columns.info), _tone(span.status)))
        lines.append(line)
    return lines


def _bar(span: Span, start: int, end: int, width: int) -> list[Cell]:
    """Return a bar of ``width`` cells; every part takes one cell at least, later ones on top."""
    cells = [(" ", "")] * width
    names = {mark: name for name, mark in PHASES.items()}
    for mark, first, last in span.marks:
        left = min(width - 1, (first - start) * width // (end - start))
        right = max(left + 1, round((last - start) * width / (end - start)))
        style = names.get(mark, span.kind)
        cells[left:right] = [(mark, style)] * (min(right, width) - left)
    merged: list[Cell] = []
    for text, style in cells:
        if merged and merged[-1][1] == style:
            merged[-1] = (merged[-1][0] + text, style)
        else:
            merged.append((text, style))
    return merged


def _fit(text: str, width: int, *, pad: bool = False) -> str:
    """Cut ``text`` to ``width`` cells, with an ellipsis; with ``pad`` fill it up."""
    if cell_len(text) > width:
        text = set_cell_size(text, max(0, width - 1)) + "…"
    return set_cell_size(text, width) if pad else text


def _tone(status: str) -> str:
    return "bad" if status in ("failed", "interrupted") else "dim"
