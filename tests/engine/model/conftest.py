"""The model in our runner and in transformers, each loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine.frames import CoreConfig
from app.engine.runner import ModelRunner
from app.engine.tokenizer import Tokenizer
from app.engine.weights import Checkpoint, open_checkpoint
from bench.reference import reference


@pytest.fixture(scope="session")
def checkpoint(model_path: Path) -> Iterator[Checkpoint]:
    with open_checkpoint(model_path) as opened:
        yield opened


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return Tokenizer.load(checkpoint)


@pytest.fixture(scope="session")
def exact(model_path: Path) -> ModelRunner:
    """Our runner in float32."""
    return ModelRunner.load(
        CoreConfig(model=str(model_path), dtype="float32", threads=1, max_context=1024)
    )


@pytest.fixture(scope="session")
def fast(model_path: Path) -> ModelRunner:
    """Our runner in bfloat16."""
    return ModelRunner.load(
        CoreConfig(model=str(model_path), dtype="bfloat16", threads=1, max_context=1024)
    )


@pytest.fixture(scope="session")
def oracle(model_path: Path) -> Any:
    """transformers in float32, on the weights that the gguf package dequantizes."""
    return reference(model_path, torch.float32)
