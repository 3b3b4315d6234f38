"""Frames survive any cutting of the stream, and a closed end is noticed."""

from __future__ import annotations

import asyncio
import itertools
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.channel import MAX_FRAME, Channel, Decoder, StreamChannel, encode
from app.engine.frames import Add, Cancel, Output, Step, Stop, ToCore
from app.engine.sampling import SamplingParams
from app.events.catalogue import ChatMessage

FRAMES: list[ToCore] = [
    Add(
        request="r/1",
        params=SamplingParams(temperature=0.5, stop=("é",), seed=2**62),
        messages=[ChatMessage(role="user", content="東京 👩‍🚀" * 200)],
        output=list(range(300)),
    ),
    Cancel(request="r/1"),
    Stop(),
]


@given(cuts=st.lists(st.integers(0, 6000), max_size=12))
def test_frames_survive_any_cutting(cuts: list[int]) -> None:
    data = bytes(encode(FRAMES))
    decoder: Decoder[ToCore] = Decoder(ToCore)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    frames = []
    for start, end in itertools.pairwise(edges):
        frames += decoder.feed(data[start:end])
    assert frames == FRAMES


def test_a_frame_that_is_too_long_or_unknown_is_refused() -> None:
    decoder: Decoder[ToCore] = Decoder(ToCore)
    with pytest.raises(ValueError, match="at most"):
        decoder.feed((MAX_FRAME + 1).to_bytes(4))
    with pytest.raises(ValueError, match="Invalid value 'Step'"):
        Decoder[ToCore](ToCore).feed(encode([Step(time=0.0, outputs=[])]))


async def test_both_ends_talk_and_notice_that_the_other_is_gone() -> None:
    ours, theirs = socket.socketpair()
    core = Channel(theirs)
    host = StreamChannel(*await asyncio.open_connection(sock=ours))
    assert core.poll() == []
    for frame in FRAMES:
        host.send(frame)
    await asyncio.sleep(0)
    assert core.receive() + core.poll() == FRAMES
    step = Step(time=1.5, outputs=[Output("r/1", [1, 2], "hé", None)])
    core.send([step, step])
    assert await host.receive() == [step, step]
    await host.aclose()
    assert core.receive() == []
    assert core.closed
    core.send([step])
    theirs.close()


async def test_the_host_notices_that_the_core_is_gone() -> None:
    ours, theirs = socket.socketpair()
    host = StreamChannel(*await asyncio.open_connection(sock=ours))
    theirs.close()
    assert await host.receive() == []
    host.send(Stop())
    await host.aclose()
