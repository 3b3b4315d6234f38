"""A batch without a server: lines of a file through a core of one's own, into a `Journal`."""

from __future__ import annotations

import contextlib
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import msgspec

from app.engine.child import Child
from app.engine.flow import Outcome, complete
from app.engine.frames import Add, asked
from app.engine.hub import known_as
from app.engine.tokenizer import Tokenizer
from app.errors import InputError
from app.events.catalogue import (
    RequestEmbedded,
    RequestFailed,
    RequestFinished,
    Timings,
    TokensGenerated,
)
from app.transport.openai import lines
from app.transport.openai.errors import ApiError, failed
from app.transport.openai.journal import Journal, Key
from app.transport.openai.lines import Line, Planned
from app.transport.openai.models import Model, chosen
from app.transport.openai.reply import Answer
from app.transport.openai.tokens import prompt_ids

__all__ = ["Input", "Offline", "model_of"]


class Input:
    """A file of lines, read once to see what is in it. Empty lines are passed over.

    Attributes:
        path: The file.
        numbers: Number of each line that can be read, by its ``custom_id``.
        faults: Why others cannot, by number.

    Raises:
        InputError: It cannot be read, or two lines have the same ``custom_id``.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.numbers: dict[str, int] = {}
        self.faults: dict[int, ApiError] = {}
        for number, text in self._texts():
            try:
                line = lines.read(text, number)
            except ApiError as error:
                self.faults[number] = error
                continue
            first = self.numbers.setdefault(line.custom_id, number)
            if first != number:
                raise InputError(
                    f"{path}:{number}: custom_id {line.custom_id!r} is that of line {first} too",
                    hint="Results are found by it: give every line its own.",
                )

    def __len__(self) -> int:
        """How many lines there are."""
        return len(self.numbers) + len(self.faults)

    def order(self, key: Key) -> int:
        """Number of the line that a result belongs to."""
        return key if isinstance(key, int) else self.numbers[key]

    def check(self, done: set[Key]) -> None:
        """Go on if all results there are belong to this file.

        Raises:
            InputError: One does not.

        """
        for key in done:
            if key not in (self.faults if isinstance(key, int) else self.numbers):
                raise InputError(
                    f"there are results already, and {key!r} is not in {self.path}",
                    hint="Name another output, or begin anew with --overwrite.",
                )

    def lines(self) -> Iterator[Line]:
        """The lines that can be read."""
        for number, text in self._texts():
            if number not in self.faults:
                yield lines.read(text, number)

    def _texts(self) -> Iterator[tuple[int, bytes]]:
        try:
            with self.path.open("rb") as file:
                for number, text in enumerate(file, 1):
                    if text.strip():
                        yield number, text
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from None


class _Waiting(msgspec.Struct):
    """A line that is under way: what came back of its requests."""

    line: Line
    planned: Planned
    outcomes: dict[int, Outcome] = {}


class Offline:
    """Runs what has no result yet.

    Attributes:
        tokens: Tokens of answers so far.

    Args:
        given: The lines.
        journal: Their results.
        child: The core.
        model: What it has loaded.
        path: Where that model's files are.
        window: Most requests at the core at once.

    """

    def __init__(
        self,
        given: Input,
        journal: Journal,
        child: Child,
        *,
        model: Model,
        path: Path,
        window: int,
    ) -> None:
        self.tokens = 0
        self._input, self._journal, self._child = given, journal, child
        self._model, self._path, self._window = model, path, window
        self._tokenizer: Tokenizer | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._created = int(time.time())

    def run(self, progress: Callable[[int, int], object]) -> None:
        """Run all; ``progress`` is told how many lines are done, and how many tokens there are.

        Raises:
            CoreDied: The core ended; what has a result keeps it.

        """

        def count(new: int) -> None:
            self.tokens += new
            progress(len(self._journal.done), self.tokens)

        flow = complete(self._child, self._requests(), window=self._window, progress=count)
        with contextlib.closing(flow):
            for outcome in flow:
                number, _, index = outcome.request.partition(".")
                waiting = self._waiting[int(number)]
                waiting.outcomes[int(index)] = outcome
                if len(waiting.outcomes) == len(waiting.planned.requests):
                    self._end(self._waiting.pop(int(number)))
                    progress(len(self._journal.done), self.tokens)

    def _requests(self) -> Iterator[Add]:
        for number, error in self._input.faults.items():
            if number not in self._journal.done:
                self._journal.write(number, lines.unread(f"line {number}", number, error))
        for line in self._input.lines():
            if line.custom_id in self._journal.done:
                continue
            try:
                planned = lines.plan(line, self._choose, created=self._created)
            except ApiError as error:
                self._write(line, lines.failure(line.custom_id, line, error))
                continue
            self._waiting[line.number] = _Waiting(line, planned)
            for index, queued in enumerate(planned.requests):
                yield asked(
                    queued,
                    f"{line.number}.{index}",
                    queued.params,
                    priority=queued.priority,
                    salt=queued.salt,
                )

    def _choose(self, name: str | None) -> tuple[str, str | None]:
        model = chosen([self._model], name)
        assert model is not None
        return name or model.id, model.root

    def _end(self, waiting: _Waiting) -> None:
        line, requests = waiting.line, waiting.planned.requests
        outcomes = [waiting.outcomes[index] for index in range(len(requests))]
        first = requests[0].request
        wrong = next((each for each in outcomes if each.error is not None), None)
        if wrong is not None:
            failure = RequestFailed(request=first, code=wrong.code or "", message=wrong.error or "")
            self._write(line, lines.failure(line.custom_id, line, failed(failure), first))
            return
        answer = self._answer(waiting.planned)
        for index, outcome in enumerate(outcomes):
            for payload in _payloads(outcome):
                answer.feed(index, payload)
        self._write(line, lines.success(line.custom_id, line, first, answer.body()))

    def _answer(self, planned: Planned) -> Answer:
        params = planned.requests[0].params
        if params.logprobs is None and params.prompt_logprobs is None and not planned.ids:
            return planned.answer(planned.requests, None, ())
        tokenizer = self._tokenizer = self._tokenizer or Tokenizer.open(self._path)
        prompts = []
        if params.prompt_logprobs is not None or planned.ids:
            prompts = [prompt_ids(request, tokenizer) for request in planned.requests]
        return planned.answer(planned.requests, tokenizer.token_bytes, prompts)

    def _write(self, line: Line, result: dict[str, object]) -> None:
        self._journal.write(line.custom_id, result)


def model_of(child: Child, configured: str) -> Model:
    """The model that a core has loaded, under all its names."""
    ready = child.ready
    known = known_as(ready.model)
    name = known.name if known else ready.model
    return Model(name, ready.model, ready.context, int(time.time()), (configured,))


def _payloads(outcome: Outcome) -> Iterator[TokensGenerated | RequestEmbedded | RequestFinished]:
    """What a log would have of it."""
    request = outcome.request
    if outcome.embedding:
        vector = b64encode(outcome.embedding).decode()
        dimensions = len(outcome.embedding) // 4
        yield RequestEmbedded(
            request=request, epoch=1, vector=vector, dimensions=dimensions, pooling=""
        )
    yield TokensGenerated(
        request=request,
        epoch=1,
        batch=0,
        index=0,
        tokens=outcome.tokens,
        text=outcome.text,
        logprobs=outcome.logprobs,
        prompt_logprobs=outcome.prompt,
    )
    yield RequestFinished(
        request=request,
        epoch=1,
        reason=outcome.reason,
        text=outcome.text,
        usage=outcome.usage,
        timings=Timings(),
        batches=1,
        digest=sha256(outcome.text.encode()).hexdigest(),
    )
