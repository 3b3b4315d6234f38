"""``python -m bench.questions [NAME]...``: answer the open questions, all by default."""

from __future__ import annotations

import sys

from bench.questions import checkpoints, commits, hops, sizes, statement, wake

PARTS = {
    "commits": commits.main,
    "wake": wake.main,
    "statement": statement.main,
    "checkpoints": checkpoints.main,
    "hops": hops.main,
    "sizes": sizes.main,
}


def main() -> None:
    """Answer one after the other."""
    names = sys.argv[1:] or list(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        sys.exit(f"There is no question {unknown[0]!r}; there are {', '.join(PARTS)}.")
    for name in names:
        PARTS[name]()


if __name__ == "__main__":
    main()
