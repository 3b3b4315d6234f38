"""Memory: a core beyond its weights and KV cache, and what an idle client costs the server."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import uvloop

from app.engine.frames import Add, CoreConfig, Step
from app.engine.hub import resolve
from app.engine.supervisor import CoreProcess
from app.events.catalogue import SamplingParams
from app.events.ids import uuid7
from bench.harness import client, everlog, resident
from bench.report import Goal, Report

MODEL = "smollm2-135m-instruct"
KV = 384 << 20  # room for one sequence of full length in float32
BATCH = 32
FIRST, MORE = 100, 500
BYTES = {"bfloat16": 2, "float32": 4}
MB = 1e6


def main(arguments: list[str] | None = None) -> None:
    """Measure and publish."""
    weights, dtype, loaded, peak = uvloop.run(_core())
    sockets, followers = uvloop.run(_clients())
    beyond = (peak - weights - KV) / MB
    Report(
        name="memory",
        title="Memory",
        columns=["", "resident"],
        rows=[
            [f"weights, {dtype}", f"{weights / MB:.1f} MB"],
            ["KV cache", f"{KV / MB:.1f} MB"],
            ["core, model loaded", f"{loaded / MB:.1f} MB"],
            [f"core, at most, during {BATCH} requests", f"{peak / MB:.1f} MB"],
            ["core beyond weights and KV cache", f"{beyond:.1f} MB"],
            ["server, an idle socket", f"{sockets / 1e3:.1f} KB"],
            ["server, an idle socket that follows a thread", f"{followers / 1e3:.1f} KB"],
        ],
        goals=[
            Goal("core beyond weights and KV cache, MB", beyond, 400, at_least=False),
            Goal("idle client, KB", followers / 1e3, 50, at_least=False),
        ],
        notes=[
            f"Resident memory. The core answers {BATCH} requests of 64 tokens at once. Clients: "
            f"growth of the server's memory over {MORE} more after the first {FIRST}, which grow "
            "its pools. What the kernel keeps for a socket is not counted.",
        ],
    ).publish()


async def _core() -> tuple[int, str, int, int]:
    """Return bytes of weights, their type, and bytes resident after loading and at most."""
    core = await CoreProcess.launch(CoreConfig(model=str(resolve(MODEL)), kv_memory=KV))
    loaded = resident(core.pid)
    params = SamplingParams(max_tokens=64, ignore_eos=True, seed=0)
    waiting = {uuid7() for _ in range(BATCH)}
    for request in waiting:
        core.send(Add(request=request, params=params, text="Once upon a time " * 8))
    while waiting:
        for frame in await core.receive():
            if isinstance(frame, Step):
                waiting -= {output.request for output in frame.outputs if output.reason}
    peak = resident(core.pid, peak=True)
    weights = core.ready.parameters * BYTES[core.ready.dtype]
    await core.stop()
    return weights, core.ready.dtype, loaded, peak


async def _clients() -> tuple[float, float]:
    """Return bytes an idle socket costs the server, and one that follows a thread."""
    found = []
    for follow in (False, True):
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            port, pid = stack.enter_context(everlog(folder, {}, "--no-engine"))
            url = f"ws://127.0.0.1:{port}/ws"
            await _connect(stack, url, FIRST, follow)
            before = resident(pid)
            await _connect(stack, url, MORE, follow)
            found.append((resident(pid) - before) / MORE)
    return found[0], found[1]


async def _connect(stack: AsyncExitStack, url: str, count: int, follow: bool) -> None:
    for _ in range(count):
        connection = await stack.enter_async_context(client(url))
        if follow:
            frame = msgspec.json.encode({"t": "open", "thread": uuid7()})
            await connection.send(frame, text=True)
            while b'"live"' not in await connection.recv(decode=False):
                pass
    await asyncio.sleep(1)


if __name__ == "__main__":
    main()
