"""The engine core: the process that computes. ``python -m app.engine.core FD CONFIG``.

It knows no event loop and no database: frames come in and go out on an inherited socket (file
descriptor ``FD``), and it ends when the socket closes. One pass of the loop is one step: take
frames, schedule, execute, detokenize, send. An error in a step ends the process: the host starts
another one, and every request goes on from its committed tokens.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
import traceback

import msgspec

from app.engine.blocks import BlockManager
from app.engine.channel import Channel
from app.engine.detokenizer import Detokenizer
from app.engine.frames import (
    Add,
    Cancel,
    CoreConfig,
    Failed,
    Fatal,
    Output,
    Ready,
    Started,
    Step,
    Stop,
    ToCore,
)
from app.engine.runner import ModelRunner
from app.engine.sampling import validate_ids
from app.engine.scheduler import Sampled, Scheduler
from app.engine.sequence import Pooling, Sequence
from app.engine.speculation import Speculator
from app.errors import EverlogError, InputError
from app.events.catalogue import Embedding

__all__ = ["Core", "main"]

NICENESS = 1
"""A little behind the host: on few cores delivering tokens goes before making new ones."""


class Core:
    """Scheduler, runner and detokenizers behind one channel."""

    def __init__(self, config: CoreConfig, runner: ModelRunner, channel: Channel) -> None:
        info = runner.info
        self.runner = runner
        self.channel = channel
        drafts = config.speculation == "ngram"
        self._speculator = Speculator(config.draft_tokens) if drafts else None
        self.scheduler = Scheduler(
            BlockManager(info.num_blocks, info.block_size, prefix_cache=config.prefix_cache),
            context=info.context,
            eos=info.eos,
            max_batch=config.max_batch,
            max_tokens=config.max_tokens_per_step,
            policy=config.policy,
            propose=self._speculator.propose if self._speculator else None,
            fair=config.fair,
        )
        self._pooling = config.pooling
        self._texts: dict[str, Detokenizer] = {}
        self._out: list[msgspec.Struct] = []
        self._stopping = False

    def run(self) -> None:
        """Serve until the host sends `Stop` or goes away."""
        while not self._stopping:
            self._flush()
            frames = self.channel.poll() if self.scheduler.busy else self.channel.receive()
            if self.channel.closed:
                return
            for frame in frames:
                self._take(frame)
            self._step()

    def ready(self) -> Ready:
        """What the host is told first."""
        info = self.runner.info
        return Ready(
            model=info.name,
            weights=info.weights,
            architecture=info.architecture,
            device=info.device,
            dtype=info.dtype,
            threads=info.threads,
            context=self.scheduler.context,
            blocks=info.num_blocks,
            block_size=info.block_size,
            parameters=info.parameters,
            load_time=info.load_time,
            eos=list(info.eos),
            pooling=self._pooling if info.width else "off",
            deterministic=info.deterministic,
            cpu=info.cpu,
            torch=info.torch,
        )

    def _flush(self) -> None:
        if self._out:
            self.channel.send(self._out)
            self._out = []

    def _take(self, frame: ToCore) -> None:
        if isinstance(frame, Add):
            try:
                self._add(frame)
            except EverlogError as error:
                self.runner.release(frame.request)
                self._out.append(Failed(request=frame.request, code="invalid", message=str(error)))
        elif isinstance(frame, Cancel):
            if self.scheduler.end(frame.request):
                self._forget(frame.request)
        elif isinstance(frame, Stop):
            self._stopping = True

    def _add(self, add: Add) -> None:
        validate_ids(add.params, self.runner.tokenizer.vocab_size)
        sequence = Sequence(
            add.request,
            self._prompt(add),
            add.params,
            output=add.output,
            priority=add.priority,
            arrival=add.queued,
            deadline=add.deadline,
            salt=add.salt,
            pooling=self._pool(add.embed),
            tenant=add.tenant,
        )
        text = Detokenizer(
            self.runner.tokenizer.token_bytes,
            add.params.stop,
            min_tokens=add.params.min_tokens,
        )
        text.replay(add.output)
        ended = "stop" if text.stopped else self.scheduler.endings.reason(sequence)
        if ended is not None:  # its committed tokens were all of it
            now = time.time()
            started = Started(
                request=add.request, prompt_tokens=sequence.prompt_len, cached_tokens=0, time=now
            )
            output = Output(request=add.request, tokens=[], text=text.finish(), reason=ended)
            self._out += [started, Step(time=now, outputs=[output])]
            return
        self.runner.prepare(sequence)
        if self.scheduler.add(sequence):
            self._texts[add.request] = text

    def _pool(self, embed: Embedding | None) -> Pooling | None:
        """How to make the vector that is asked for.

        Raises:
            InputError: This engine makes none, or none so long.

        """
        if embed is None:
            return None
        width = self.runner.info.width
        if self._pooling == "off" or not width:
            why = "engine.pooling is off" if width else "its architecture cannot"
            raise InputError(f"this engine makes no embeddings: {why}", field="model")
        dimensions = width if embed.dimensions is None else embed.dimensions
        if not 1 <= dimensions <= width:
            raise InputError(f"must be 1 to {width}, not {dimensions}", field="dimensions")
        return Pooling(self._pooling, dimensions)

    def _prompt(self, add: Add) -> list[int]:
        """Token ids of a prompt.

        Raises:
            InputError: It is empty, the template refuses it, or an id is not in the vocabulary.

        """
        if add.messages is not None:
            try:  # a template may make a prompt of nothing; nobody asked for that
                prompt = self._rendered(add)
            except InputError:
                raise
            except Exception as error:  # a template is code that came with the model
                raise InputError(
                    f"the model's chat template refused them: {error}", field="messages"
                ) from error
            field = "messages"
        elif add.text is not None:
            prompt, field = self.runner.tokenizer.encode(add.text), "text"
        else:
            prompt, field = add.prompt or [], "prompt"
            size = self.runner.tokenizer.vocab_size
            wrong = next((token for token in prompt if not 0 <= token < size), None)
            if wrong is not None:
                raise InputError(f"token ids are 0 to {size - 1}, not {wrong}", field=field)
        if not prompt:
            raise InputError("must not be empty", field=field)
        return prompt

    def _rendered(self, add: Add) -> list[int]:
        if not add.messages:
            return []
        variables = dict(add.template)
        begin = bool(variables.pop("add_generation_prompt", True))
        given = {k: v for k, v in variables.items() if k not in ("self", "messages", "tools")}
        return self.runner.template.encode(
            add.messages, tools=add.tools, add_generation_prompt=begin, **given
        )

    def _step(self) -> None:
        works = self.scheduler.schedule(time.time())
        self._notify()
        if not works:
            return
        self._flush()  # what started is known before the step, however long that takes
        began = time.perf_counter()
        draws = self.runner.execute(works)
        if self._speculator is not None:
            self._speculator.timed(works, time.perf_counter() - began)
        sampled = self.scheduler.commit(works, draws)
        self._notify()
        if sampled:
            outputs = [self._output(result) for result in sampled]
            blocks = self.scheduler.blocks
            used = blocks.num_blocks - blocks.available
            self._out.append(Step(time=time.time(), outputs=outputs, used=used))

    def _notify(self) -> None:
        for notice in self.scheduler.notices:
            self._out.append(notice)
            if isinstance(notice, Failed):
                self._forget(notice.request)
        self.scheduler.notices.clear()

    def _output(self, result: Sampled) -> Output:
        sequence, tokens, reason, logprobs, prompt, embedding, drafts = result
        request = sequence.request
        if embedding is not None:
            self._forget(request)
            return Output(request, [], "", reason, embedding=embedding)
        detokenizer = self._texts[request]
        # A token that ends the output has no text, even one that is not special.
        spoken = tokens[:-1] if reason == "stop" else tokens
        text, said = "", 0
        while said < len(spoken) and not detokenizer.stopped:
            text += detokenizer.push(spoken[said])
            said += 1
        if detokenizer.stopped:
            reason, tokens = "stop", tokens[:said]
            logprobs = logprobs and logprobs[:said]
            drafts = (drafts[0], min(drafts[1], said))
            self.scheduler.end(request)
        if reason is not None:
            text += detokenizer.finish()
            self._forget(request)
        return Output(request, tokens, text, reason, logprobs, prompt, drafts=drafts)

    def _forget(self, request: str) -> None:
        self._texts.pop(request, None)
        self.runner.release(request)
        if self._speculator is not None:
            self._speculator.release(request)


def main(argv: list[str]) -> int:
    """Run a core; returns the exit status."""
    channel = Channel(socket.socket(fileno=int(argv[1])))
    _settle()
    try:
        config = msgspec.json.decode(argv[2], type=CoreConfig)
        core = Core(config, ModelRunner.load(config), channel)
        channel.send([core.ready()])
        core.run()
    except EverlogError as error:
        channel.send([Fatal(message=error.message, hint=error.hint)])
        return 3
    except Exception as error:
        traceback.print_exc()
        channel.send([Fatal(message=f"{type(error).__name__}: {error}")])
        return 1
    return 0


def _settle() -> None:
    """Make the process a well-behaved child: it ends with its host, and not by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig, pr_set_name = 1, 15
        libc = ctypes.CDLL(None)
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
        libc.prctl(pr_set_name, b"everlog-core", 0, 0, 0)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
