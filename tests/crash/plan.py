"""What happens when: harm chosen by a seed, so that what has failed can be tried again."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

__all__ = ["ROUNDS", "Act", "Round", "plan", "play", "seconds_for", "seed"]

ROUNDS = int(os.environ.get("TORTURE_ROUNDS") or 0)
"""How often harm is done in each test; 0: as often as there are kinds of it."""

Act = Callable[[int, float], Awaitable[None]]
"""Does harm to a process by number, and mends it after some seconds."""

SECONDS_EACH = 60.0
"""Longest time of a round."""


@dataclass(frozen=True)
class Round:
    """Harm of one or two kinds at once: name, number of the process, seconds until mended."""

    pause: float
    harm: tuple[tuple[str, int, float], ...]

    def __str__(self) -> str:
        what = " and ".join(f"{name} {at} for {seconds:.2f} s" for name, at, seconds in self.harm)
        return f"after {self.pause:.2f} s {what}"


def seed() -> int:
    """The seed: ``TORTURE_SEED``; else by chance in a long run, the same in a short one."""
    given = os.environ.get("TORTURE_SEED")
    if given:
        return int(given)
    return random.SystemRandom().randrange(10**6) if ROUNDS else 1


def seconds_for(kinds: int) -> float:
    """Longest time of a test with so many kinds of harm."""
    return 60 + SECONDS_EACH * max(ROUNDS, kinds)


def plan(kinds: Sequence[str], seed: int, *, rounds: int = 0) -> list[Round]:
    """Choose what happens: every kind once in each cycle, from the second on also two at once.

    Args:
        kinds: Names of harm.
        seed: The same gives the same.
        rounds: How many; 0: `ROUNDS`, or one cycle.

    """
    chance = random.Random(seed)
    rounds = rounds or ROUNDS or len(kinds)
    chosen: list[Round] = []
    while len(chosen) < rounds:
        for name in chance.sample(kinds, len(kinds)):
            names = [name]
            if len(chosen) >= len(kinds) and chance.random() < 0.4:
                names.append(chance.choice(kinds))
            harm = tuple((name, chance.randrange(4), chance.uniform(0.0, 1.2)) for name in names)
            chosen.append(Round(chance.uniform(0.1, 0.9), harm))
    return chosen[:rounds]


async def play(
    rounds: Sequence[Round], acts: object, recovered: Callable[[], Awaitable[None]]
) -> None:
    """Do what was planned; after each round everything has to work again.

    Args:
        rounds: The plan.
        acts: Has a method for each kind of harm.
        recovered: Returns once the service is seen to work.

    """
    for number, round in enumerate(rounds, 1):
        print(f"  {number}/{len(rounds)}: {round}", flush=True)
        await asyncio.sleep(round.pause)
        async with asyncio.timeout(SECONDS_EACH):
            async with asyncio.TaskGroup() as group:
                for name, at, seconds in round.harm:
                    act: Act = getattr(acts, name)
                    group.create_task(_do(act, at, seconds))
            await recovered()


async def _do(act: Act, at: int, seconds: float) -> None:
    await act(at, seconds)
