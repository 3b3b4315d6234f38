"""The model in memory, and one step of it over any mix of work."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import torch

from app.engine.attention import AttentionBackend, Span, TorchAttention
from app.engine.cache import KVCache, plan_blocks
from app.engine.drawing import Drawer
from app.engine.frames import CoreConfig
from app.engine.models.base import Model
from app.engine.models.linear import packs
from app.engine.models.registry import lookup
from app.engine.pooling import Pooler
from app.engine.proof import prove
from app.engine.sequence import Draw, Sequence, Work
from app.engine.template import ChatTemplate
from app.engine.tiles import TiledAttention
from app.engine.tokenizer import Tokenizer
from app.engine.weights import digest, open_checkpoint
from app.errors import StartupError

__all__ = ["ModelInfo", "ModelRunner"]


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was loaded, and onto what.

    Attributes:
        name: Name of the file or folder.
        weights: Hex digest of the weights' files.
        architecture: As the checkpoint names it.
        device: ``cpu`` or ``cuda``.
        dtype: ``float32`` or ``bfloat16``.
        threads: CPU threads.
        context: Longest sequence.
        num_blocks: Blocks of the KV cache.
        block_size: Tokens in a block.
        parameters: Numbers the model learned.
        width: Length of its hidden states; 0: it does not give them.
        eos: Ids that end a generation.
        load_time: Seconds.
        deterministic: Whether a request's bits depend on it alone.
        cpu: Instructions that torch uses.
        torch: Its version.

    """

    name: str
    weights: str
    architecture: str
    device: str
    dtype: str
    threads: int
    context: int
    num_blocks: int
    block_size: int
    parameters: int
    width: int
    eos: list[int]
    load_time: float
    deterministic: bool
    cpu: str
    torch: str


class ModelRunner:
    """Computes steps. One thread at a time.

    Attributes:
        info: What was loaded.
        tokenizer: The model's tokenizer.
        template: The model's chat template.

    """

    def __init__(
        self,
        model: Model,
        attention: AttentionBackend,
        drawer: Drawer,
        tokenizer: Tokenizer,
        info: ModelInfo,
    ) -> None:
        self.info, self.tokenizer = info, tokenizer
        self.template = ChatTemplate(tokenizer.chat_template, tokenizer)
        self._model, self._attention, self._drawer = model, attention, drawer
        self._pooler = Pooler()
        self._device = torch.device(info.device)

    @classmethod
    def load(cls, config: CoreConfig) -> ModelRunner:
        """Load a model, allocate its cache, run it once.

        Sets the number of torch's threads for the process.

        Raises:
            StartupError: no usable model there, or it does not fit.

        """
        began = time.perf_counter()
        threads = config.threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(threads)
        device, dtype = _place(config)
        with open_checkpoint(config.model) as checkpoint, ThreadPoolExecutor(1) as pool:
            hashing = pool.submit(digest, checkpoint.files)
            tokenizer = Tokenizer.load(checkpoint)
            kind = lookup(checkpoint)
            model = kind.load(
                checkpoint,
                device=device,
                dtype=dtype,
                context=config.max_context,
                **_promise(config, device, kind),
            )
            architecture, weights = checkpoint.architecture, hashing.result()
        blocks = plan_blocks(
            model.shape,
            block_size=config.block_size,
            memory=config.kv_memory,
            max_batch=config.max_batch,
            device=device,
            dtype=dtype,
        )
        cache = KVCache(
            model.shape, blocks=blocks, block_size=config.block_size, device=device, dtype=dtype
        )
        attention = TiledAttention(cache) if config.deterministic else TorchAttention(cache)
        if config.deterministic:
            prove(model, attention, cache)
        _warm_up(model, attention, cache)
        _trim()
        info = ModelInfo(
            name=Path(config.model).name,
            weights=weights,
            architecture=architecture,
            device=device.type,
            dtype=str(dtype).removeprefix("torch."),
            threads=threads,
            context=model.shape.context,
            num_blocks=blocks,
            block_size=config.block_size,
            parameters=model.parameters,
            width=model.width,
            eos=tokenizer.eos,
            load_time=time.perf_counter() - began,
            deterministic=config.deterministic,
            cpu=torch.backends.cpu.get_cpu_capability(),
            torch=str(torch.__version__),
        )
        return cls(model, attention, Drawer(tokenizer, model.shape.vocab), tokenizer, info)

    def prepare(self, sequence: Sequence) -> None:
        """Make ready what a sequence needs beside the model, before its first work.

        Raises:
            InputError: It asks for something that is not to be had.

        """
        self._drawer.prepare(sequence)

    def execute(self, works: Seq[Work]) -> list[Draw | None]:
        """Run one step.

        Returns:
            For each work what follows, or None where the work does not reach the last token. What
            follows a sequence that is only read is its embedding.
            Sequences are left as they are.

        """
        if not works:
            return []
        self._drawer.foresee(works)
        logits, order, prompts = self._forward(works)
        result: list[Draw | None] = [self._pooler.draw(work) for work in works]
        if logits is None:
            return result
        drawn = at = sum(1 + len(works[i].drafts) for i in order)
        for work, count in prompts:
            self._drawer.score(work, logits[at : at + count])
            at += count
        if order:
            draws = self._drawer.verify(logits[:drawn], [works[i] for i in order])
            for index, draw in zip(order, draws, strict=True):
                result[index] = draw
        return result

    def logits(self, works: Seq[Work]) -> torch.Tensor:
        """Run one step and return float32 logits ``[n, vocab]`` of the works that sample.

        None of them has drafts.
        """
        logits, order, _ = self._forward(works)
        if logits is None:
            return torch.empty(0, self._model.shape.vocab)
        back = sorted(range(len(order)), key=order.__getitem__)
        return logits.float()[back]

    def release(self, request: str) -> None:
        """Forget what is kept for a request outside its sequence."""
        self._drawer.release(request)
        self._pooler.release(request)

    @torch.inference_mode()
    def _forward(
        self, works: Seq[Work]
    ) -> tuple[torch.Tensor | None, list[int], list[tuple[Work, int]]]:
        """Logits of the works that sample, and their indices in the order of the rows.

        A work has a row for its last token, and one for each of its drafts. Behind them come the
        rows of works whose prompts are scored; so many of each.
        """
        order = _arrange(works)
        ordered = [works[i] for i in order]
        decodes = sum(work.places == 1 for work in ordered)
        tokens: list[int] = []
        spans, sampled = [], []
        last: list[int] = []
        inner: list[int] = []  # rows of prompts
        prompts: list[tuple[Work, int]] = []
        pooled: list[int] = []  # rows of embeddings
        for index, work in zip(order, ordered, strict=True):
            sequence, end = work.sequence, work.start + work.length
            spans.append(Span(work.start, work.places, sequence.blocks))
            tokens += sequence.tokens[work.start : end]
            if work.samples:
                last += range(len(tokens) - 1, len(tokens) + len(work.drafts))
                sampled.append(index)
            tokens += work.drafts
            if sequence.scores_prompt:
                count = min(end, sequence.prompt_len - 1) - work.start
                first = len(tokens) - work.length
                inner += range(first, first + count)
                prompts.append((work, count))
            pooled += (len(tokens) - work.length + row for row in self._pooler.rows(work))
        positions = np.concatenate([np.arange(s.start, s.end) for s in spans])
        self._attention.plan(spans, decodes)
        rows = None
        if inner or len(last) != len(tokens):
            rows = torch.tensor(last + inner + pooled, dtype=torch.int64, device=self._device)
        states = self._model.hidden if pooled else self._model.forward
        logits = states(
            torch.tensor(tokens, device=self._device),
            torch.from_numpy(positions).to(self._device),
            self._attention.attend,
            rows,
        )
        if pooled:
            logits, hidden = logits[: -len(pooled)], logits[-len(pooled) :]
            self._pooler.add(ordered, hidden)
            logits = self._model.head(logits)
        return (logits if sampled or inner else None), sampled, prompts


def _arrange(works: Seq[Work]) -> list[int]:
    """Decodes first, longest sequence first; then prefills as they come."""
    return sorted(
        range(len(works)),
        key=lambda i: (works[i].places > 1, -works[i].start if works[i].places == 1 else 0),
    )


def _place(config: CoreConfig) -> tuple[torch.device, torch.dtype]:
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise StartupError(
            "engine.device is cuda, but torch sees no GPU",
            hint="Install torch with CUDA and a driver, or set engine.device to cpu.",
        )
    device = torch.device(name)
    if config.dtype == "auto":
        fast = name == "cuda" or packs(device, torch.bfloat16)
        return device, torch.bfloat16 if fast else torch.float32
    return device, {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]


def _promise(config: CoreConfig, device: torch.device, kind: type[Model]) -> dict[str, bool]:
    """What a model is told so that it is deterministic, if that is wanted."""
    if not config.deterministic:
        return {}
    if device.type != "cpu":
        raise StartupError(
            "engine.deterministic is for the CPU: on a GPU the order of sums depends on the batch",
            hint="Set engine.device to cpu, or engine.deterministic to false.",
        )
    if not kind.invariant:
        raise StartupError(
            f"engine.deterministic: the architecture {kind.__name__} does not offer it",
            hint="Set engine.deterministic to false.",
        )
    return {"deterministic": True}


@torch.inference_mode()
def _warm_up(model: Model, attention: AttentionBackend, cache: KVCache) -> None:
    """Run a token and a span, so that the first request does not pay for lazy set-up."""
    device = cache.data.device
    for length in (min(8, cache.block_size), 1):
        attention.plan([Span(0, length, [0])], decodes=int(length == 1))
        ids = torch.zeros(length, dtype=torch.int64, device=device)
        model.forward(ids, torch.arange(length, device=device), attention.attend, None)
    cache.data[:, 0].zero_()


def _trim() -> None:
    """Give back the memory that loading used in passing; glibc keeps it otherwise."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
