"""Command ``re-run``: logged generations, executed again and compared token by token."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click
import msgspec

from app.cli.console import clean, counted, emit, styled
from app.cli.options import json_option, setting, with_settings
from app.cli.root import everlog
from app.errors import EverlogError
from app.settings import Loaded

if TYPE_CHECKING:
    from app.engine.again import Comparison, Logged
    from app.engine.frames import CoreConfig
    from app.engine.tokenizer import Tokenizer
    from app.events.store import EventStore

__all__ = ["rerun"]


@everlog.command("re-run")
@click.argument("id", metavar="REQUEST|THREAD")
@setting("--model", "engine.model", metavar="NAME")
@json_option("one JSON document: a comparison for each request")
@with_settings
def rerun(loaded: Loaded, id: str, as_json: bool) -> None:
    """Execute logged generations again, and compare them token by token.

    Give the id of a request, of an answer of the API (chatcmpl-..., cmpl-..., resp_...), or of a
    conversation, whose requests are all executed. Nothing is written. The exit code is 1 if
    anything came out otherwise. What can make a difference, and what cannot:
    docs/determinism.md.
    """
    import asyncio

    found = asyncio.run(_logged(loaded, id))
    if not any(_runs(logged) for logged in found):
        redacted = any(logged.redacted for logged in found)
        why = "its content was erased" if redacted else "nothing was generated"
        raise EverlogError(f"There is nothing to run again for {id!r}: {why}")
    compared, config = _execute(loaded, found)
    if as_json:
        emit({"same": _all_same(compared), "requests": compared})
    else:
        _say(compared, config)
    if not _all_same(compared):
        raise SystemExit(1)


def _runs(logged: Logged) -> bool:
    return not (logged.redacted or logged.empty)


def _all_same(compared: list[Comparison]) -> bool:
    return all(each.verdict not in ("different", "failed") for each in compared)


# ---------------------------------------------------------------------------------- reading


async def _logged(loaded: Loaded, id: str) -> list[Logged]:
    """What the log has of a request, or of all requests of a conversation."""
    from app.cli.access import find_request, find_thread, reading
    from app.engine.again import gather
    from app.events.envelope import request_stream, thread_stream

    async with reading(loaded) as store:
        only = None
        if (request := await find_request(store, id)) is not None:
            stream = request_stream(request)
        elif (inside := await _inside(store, id)) is not None:
            stream, only = inside
        else:
            thread = await find_thread(store, id, sought="request or conversation")
            stream = thread_stream(thread)
        events = [event async for event in store.read(stream=stream)]
        found = gather(events, await _erased(store))
    if only is not None:
        found = [logged for logged in found if logged.queued.request == only]
    return found


async def _inside(store: EventStore, id: str) -> tuple[str, str] | None:
    """Stream and id of a request in a conversation, by its id or that of its response."""
    from app.events.ids import is_id, public_request

    request = public_request(id)
    if not is_id(request) or id.startswith("conv_"):
        return None
    async for event in store.read(types=("request.queued",)):
        if event.request == request:
            return event.stream, request
    return None


async def _erased(store: EventStore) -> frozenset[int]:
    from app.events.catalogue import LogRedacted
    from app.events.codec import decode

    erased: set[int] = set()
    async for event in store.read(types=("log.redacted",)):
        payload = decode(event)
        if isinstance(payload, LogRedacted):
            erased.update(payload.seqs)
    return frozenset(erased)


# -------------------------------------------------------------------------------- executing


def _execute(loaded: Loaded, found: list[Logged]) -> tuple[list[Comparison], CoreConfig]:
    """Run all that can be, several at once as a server would, and compare."""
    from app.engine.again import add, compare
    from app.engine.child import Child, CoreDied
    from app.engine.flow import complete
    from app.engine.frames import core_config
    from app.engine.hub import resolve
    from app.engine.progress import bar

    engine = loaded.config.engine
    if any(logged.started and logged.started.deterministic for logged in found):
        # As it was; then nothing else may come out.
        engine = msgspec.structs.replace(engine, deterministic=True)
    config = core_config(engine, str(resolve(engine.model)))
    asked = [add(logged) for logged in found if _runs(logged)]
    outcomes = {}
    with contextlib.closing(Child(config)) as child, bar("Again", len(asked)) as advance:
        ready, tokens = child.ready, 0
        try:
            for outcome in complete(child, asked, window=config.max_batch):
                outcomes[outcome.request] = outcome
                tokens += len(outcome.tokens)
                advance(len(outcomes), tokens)
        except CoreDied as error:
            raise EverlogError(f"{error.message}; nothing was compared") from error
    return [compare(logged, outcomes.get(logged.queued.request), ready) for logged in found], config


# ---------------------------------------------------------------------------------- showing


def _say(compared: list[Comparison], config: CoreConfig) -> None:
    from app.engine.tokenizer import Tokenizer
    from app.engine.weights import open_checkpoint

    tokenizer = None
    if any(each.difference for each in compared):
        from pathlib import Path

        with open_checkpoint(Path(config.model)) as checkpoint:
            tokenizer = Tokenizer.load(checkpoint)
    for each in compared:
        _say_one(each, tokenizer)
    ran = [each for each in compared if each.verdict not in ("redacted", "empty")]
    same = sum(each.verdict == "same" for each in ran)
    click.echo(f"{same} of {counted(len(ran), 'generation')} came out the same.")


def _say_one(each: Comparison, tokenizer: Tokenizer | None) -> None:
    count = counted(each.tokens, "token")
    match each.verdict:
        case "same":
            scored = "" if each.logprobs is None else ", log probabilities bit for bit"
            what = f"{count}, all the same{scored}" if each.tokens else "the same vector"
            line = styled("✓ ", "good") + f"{each.request}  {what}"
        case "different" if each.difference is not None:
            line = styled("✗ ", "bad") + f"{each.request}  {each.equal:,} of {count} the same"
        case "different" | "failed":
            line = styled("✗ ", "bad") + f"{each.request}  {each.message}"
        case "redacted":
            line = styled(f"- {each.request}  not run: its content was erased", "dim")
        case "empty":
            line = styled(f"- {each.request}  not run: nothing was generated", "dim")
    click.echo(line)
    if each.difference is not None and tokenizer is not None:
        parted = each.difference
        click.echo(f"    token {parted.index + 1} in the log: ", nl=False)
        click.echo(_token(parted.logged, parted.logged_logprob, tokenizer))
        click.echo(f"    token {parted.index + 1} now:        ", nl=False)
        click.echo(_token(parted.again, parted.again_logprob, tokenizer))
    if each.verdict in ("different", "failed"):
        for note in each.notes:
            click.echo(styled(f"    {note}", "dim"))


def _token(token: int | None, logprob: float | None, tokenizer: Tokenizer) -> str:
    if token is None:
        return "none, the output had ended"
    known = token < tokenizer.vocab_size
    text = tokenizer.token_bytes(token).decode(errors="replace") if known else "unknown"
    score = "" if logprob is None else f", now of log probability {logprob:.4f}"
    return f"{clean(text)!r} ({token}{score})"
