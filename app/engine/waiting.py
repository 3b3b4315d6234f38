"""The line of sequences that wait for a place in the batch. Pure.

Order: by rank; among equal ranks the tenant that got the least goes first; its own by arrival. What
a tenant got is counted as in "Fairness in Serving Large Language Models" (Sheng et al., OSDI '24,
arXiv:2401.00588; virtual token counters): computed tokens of prompts, and output tokens at twice
that. A tenant that comes back into the line starts little below those who waited there, so nobody
saves up service by staying away. Two tenants that always wait never drift apart by more than twice
the tokens of a full batch, however long they compete.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from app.engine.sequence import Sequence, State

__all__ = ["OUTPUT_COST", "Key", "Overtaken", "Waiting"]

Key = tuple[int, float, int]
"""Rank, arrival in seconds, and a number that no two share; a smaller key goes first."""

OUTPUT_COST = 2
"""What an output token costs, in prompt tokens."""
CREDIT = 4096
"""What a tenant may be behind when it comes back: the line is short, and often runs out of its own
requests for a moment while more of them wait in the log."""
MOST_IDLE = 4096
"""Tenants remembered before those are forgotten who would be lifted anyway."""


class Waiting:
    """Who is next.

    Args:
        fair: Whether tenants share; otherwise all are one.

    """

    def __init__(self, *, fair: bool = True) -> None:
        self.fair = fair
        self._lines: dict[int, dict[str, list[tuple[Key, Sequence]]]] = {}  # rank, tenant: heap
        self._counts: dict[str, int] = {}  # of those that wait, by tenant
        self._got: dict[str, int] = {}  # by tenant
        self._last = ""  # the tenant that left the line last

    def __len__(self) -> int:
        """How many wait."""
        return sum(self._counts.values())

    def got(self, tenant: str) -> int:
        """What a tenant got, in prompt tokens."""
        return self._got.get(self._tenant(tenant), 0)

    def charge(self, tenant: str, tokens: int) -> None:
        """A tenant got something."""
        tenant = self._tenant(tenant)
        self._got[tenant] = self._got.get(tenant, 0) + tokens

    def join(self, key: Key, sequence: Sequence) -> None:
        """Put a new sequence in line."""
        tenant = self._tenant(sequence.tenant)
        if tenant not in self._counts:
            rivals = list(self._counts) or [self._last]
            floor = min(self._got.get(rival, 0) for rival in rivals)
            self._got[tenant] = max(self._got.get(tenant, floor), floor - CREDIT)
            self._forget(floor - CREDIT)
        self.put_back(key, sequence)

    def put_back(self, key: Key, sequence: Sequence) -> None:
        """Put a sequence in line that was there before."""
        tenant = self._tenant(sequence.tenant)
        self._counts[tenant] = self._counts.get(tenant, 0) + 1
        heapq.heappush(self._lines.setdefault(key[0], {}).setdefault(tenant, []), (key, sequence))

    def first(self) -> tuple[Key, Sequence] | None:
        """Who is next."""
        while self._lines:
            rank = min(self._lines)
            heads = list(self._heads(rank))
            if heads:
                return min(heads, key=lambda head: (self.got(head[1].tenant), head[0]))
            del self._lines[rank]
        return None

    def take(self, key: Key, sequence: Sequence) -> None:
        """Take out who is next, as `first` has just returned it."""
        heapq.heappop(self._lines[key[0]][self._tenant(sequence.tenant)])
        self.left(sequence)

    def left(self, sequence: Sequence) -> None:
        """A sequence waits no more; if it was not taken, its state is `State.ENDED`."""
        tenant = self._last = self._tenant(sequence.tenant)
        self._counts[tenant] -= 1
        if not self._counts[tenant]:
            del self._counts[tenant]

    def _heads(self, rank: int) -> Iterator[tuple[Key, Sequence]]:
        """First of each tenant; those that ended on the way are dropped here."""
        lines = self._lines[rank]
        for tenant in list(lines):
            heap = lines[tenant]
            while heap and heap[0][1].state is State.ENDED:
                heapq.heappop(heap)
            if heap:
                yield heap[0]
            else:
                del lines[tenant]

    def _tenant(self, tenant: str) -> str:
        return tenant if self.fair else ""

    def _forget(self, floor: int) -> None:
        if len(self._got) > MOST_IDLE:
            kept = {**self._counts, self._last: 0}
            self._got = {t: got for t, got in self._got.items() if got > floor or t in kept}


class Overtaken:
    """Who began before others that had come earlier, so that these can be told why."""

    RANKS = 64

    def __init__(self) -> None:
        self._newest: dict[int, tuple[int, str]] = {}  # by rank: of those that began

    def by(self, key: Key, tenant: str) -> str:
        """A sequence begins: ``priority`` or ``share`` if later ones began before it, and why."""
        rank, _, number = key
        last, who = self._newest.get(rank, (0, ""))
        if any(other < rank and newest > number for other, (newest, _) in self._newest.items()):
            reason = "priority"
        else:
            reason = "share" if last > number and who != tenant else ""
        if number > last:
            self._newest[rank] = number, tenant
        if len(self._newest) > self.RANKS:  # then somebody plays with numbers
            self._newest = {rank: self._newest[rank]}
        return reason
