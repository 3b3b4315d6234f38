"""Packages that do not go together with those of the tests, in an environment of their own."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

__all__ = ["python_with"]


def python_with(requirements: Path) -> Path:
    """A Python with these packages, and with those of the tests where they do not differ.

    It is made once and kept in the user's cache. Skips the test if the packages cannot be had.
    """
    named = requirements.read_bytes() + sys.prefix.encode()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "everlog" / f"tests-{hashlib.sha256(named).hexdigest()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of the test run may want it too
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            (packages,) = folder.glob("lib/python*/site-packages")
            (packages / "tests.pth").write_text("\n".join(site.getsitepackages()) + "\n")
            command = [python, "-m", "pip", "install", "--quiet", "-r", requirements]
            done = subprocess.run(command, capture_output=True, text=True, timeout=240)
            if done.returncode:
                pytest.skip(f"{requirements.name} cannot be installed: {done.stderr[-300:]}")
            (folder / "done").touch()
    return python
