"""``python -m bench [NAME]...``: benchmarks one after the other; all but the long by default."""

from __future__ import annotations

import subprocess
import sys

NAMES = (
    "log",
    "postgres",
    "verify",
    "rebuild",
    "streaming",
    "memory",
    "served",
    "prefix",
    "engine",
    "speculation",
    "structured",
    "nodes",
    "deterministic",
    "priority",
)

#: Minutes each; only by name.
LONG = ("questions", "flat", "large")


def main() -> None:
    """Run each in a process of its own, so that none inherits another's memory or threads."""
    names = sys.argv[1:] or NAMES
    unknown = [name for name in names if name not in NAMES + LONG]
    if unknown:
        known = ", ".join(NAMES + LONG)
        sys.exit(f"There is no benchmark {unknown[0]!r}; there are {known}.")
    failed = [
        name for name in names if subprocess.call([sys.executable, "-m", f"bench.{name}"]) != 0
    ]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
