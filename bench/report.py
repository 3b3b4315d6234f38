"""What every benchmark prints and writes: a table, goals, and the machine it ran on."""

from __future__ import annotations

import datetime
import os
import platform
import sqlite3
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["Goal", "Report", "percentile"]

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "websockets", "uvicorn", "uvloop", "aiosqlite", "msgspec")


class Goal(msgspec.Struct, frozen=True):
    """Something that was aimed at."""

    text: str
    value: float
    target: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.value >= self.target if self.at_least else self.value <= self.target

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        word = "met" if self.met else "NOT met"
        return f"{self.text}: {_number(self.value)} (aim {sign} {_number(self.target)}): {word}"


class Report(msgspec.Struct, kw_only=True):
    """The result of one benchmark.

    Attributes:
        name: Names the files in ``bench/results``.
        title: One line.
        columns: Heads of the table.
        rows: Its cells: texts and numbers.
        goals: What was aimed at.
        notes: Sentences that explain how it was measured.

    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[Any]] = []
    goals: list[Goal] = []
    notes: list[str] = []

    def publish(self) -> None:
        """Print the table; write ``<name>.json`` and ``<name>.md``."""
        text = self.markdown()
        print(text)
        RESULTS.mkdir(exist_ok=True)
        goals = [msgspec.structs.asdict(goal) | {"met": goal.met} for goal in self.goals]
        document = {"machine": machine(), **msgspec.structs.asdict(self), "goals": goals}
        encoded = msgspec.json.format(msgspec.json.encode(document), indent=2)
        (RESULTS / f"{self.name}.json").write_bytes(encoded + b"\n")
        (RESULTS / f"{self.name}.md").write_text(text)

    def markdown(self) -> str:
        """Return the report as a page."""
        facts = machine()
        lines = [f"# {self.title}", "", f"| {' | '.join(self.columns)} |"]
        lines.append(
            "|" + "|".join("---" if i == 0 else "---:" for i in range(len(self.columns))) + "|"
        )
        lines += [f"| {' | '.join(_number(cell) for cell in row)} |" for row in self.rows]
        lines += [""] + [f"- {goal}" for goal in self.goals]
        lines += ["", *self.notes, ""]
        load = facts["load"]
        lines.append(
            f"{facts['date']}, {facts['cpu']}, {facts['cores']} cores, load {load} before the run, "
            f"Python {facts['python']}, SQLite {facts['sqlite']}: `{facts['command']}`"
        )
        return "\n".join(lines) + "\n"


_load = os.getloadavg()[0]  # before the benchmark adds to it


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge the numbers."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": round(_load, 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": packages,
        "command": "python " + " ".join(sys.orig_argv[1:]),
        "date": datetime.date.today().isoformat(),
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.1f}"


def percentile(values: list[float], percent: float) -> float:
    """Return the value below which ``percent`` of them lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
