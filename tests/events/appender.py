"""Appends without end and prints each acknowledgement; killed by `test_crash`."""

from __future__ import annotations

import asyncio
import sys

from app.events.catalogue import RequestQueued, SamplingParams
from app.events.codec import new
from app.events.envelope import NewEvent
from app.events.ids import uuid7
from app.events.open import open_store
from app.events.seal import Sealer
from app.events.store import Append, Appended


async def main(url: str) -> None:
    async with open_store(url) as store, asyncio.TaskGroup() as group:

        async def write(number: int) -> None:
            stream = f"thread/{number}"
            while True:
                request = uuid7()
                queued = RequestQueued(request=request, params=SamplingParams(seed=1), text="x")
                events = [
                    NewEvent(type="test.ping", data=b'"%s"' % request.encode()),
                    new(queued, request=request),
                ]
                done = await store.append(Append(stream=stream, events=events, command=request))
                assert isinstance(done, Appended)
                sys.stdout.write(f"{done.first_seq} {stream} {done.version} {request}\n")
                sys.stdout.flush()
                if number == 0:
                    await store.claim(worker="w", limit=3, lease=10)

        group.create_task(Sealer(store, every=50, seconds=0.05).run())
        for number in range(6):
            group.create_task(write(number))


asyncio.run(main(sys.argv[1]))
