"""Files: every type of tensor, and every kind of damage."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file

from app.engine.models.registry import lookup
from app.engine.weights import Damaged, digest, open_checkpoint
from app.errors import StartupError


def write(path: Path, tensors: dict[str, tuple[np.ndarray[Any, Any], Kind]], **meta: Any) -> Path:
    writer = GGUFWriter(str(path), meta.pop("arch", "llama"))
    writer.add_uint32("some.number", 7)
    writer.add_array("some.texts", ["a", "ü", ""])
    writer.add_array("some.numbers", [1.5, -2.0])
    writer.add_bool("some.truth", True)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    return write(tmp_path / "small.gguf", {"w": (values, Kind.Q8_0), "v": (values, Kind.F32)})


@pytest.mark.parametrize(
    "kind",
    [Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0],
)
def test_types(tmp_path: Path, kind: Kind) -> None:
    values = np.random.default_rng(1).normal(size=(6, 96)).astype(np.float32)
    path = write(tmp_path / "t.gguf", {"w": (values, kind)})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.shape("w") == (6, 96)
        got = checkpoint.tensor("w").float().numpy()
    want = dequantize(quantize(values, kind), kind)
    assert np.array_equal(got, want)
    assert np.abs(got - values).max() < 0.5


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K, Kind.Q5_K, Kind.Q3_K, Kind.Q2_K])
def test_types_the_package_only_reads(tmp_path: Path, kind: Kind) -> None:
    """Random bytes as blocks of 256 values."""
    from gguf.constants import GGML_QUANT_SIZES

    _, size = GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(2).integers(0, 60, (3, 2 * size)).astype(np.uint8)
    writer = GGUFWriter(str(tmp_path / "k.gguf"), "llama")
    writer.add_tensor("w", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "k.gguf") as checkpoint:
        got = checkpoint.tensor("w")
    assert got.shape == (3, 512)
    assert np.array_equal(got.numpy(), dequantize(raw, kind))


def test_metadata(small: Path) -> None:
    with open_checkpoint(small) as checkpoint:
        meta = checkpoint.metadata
        assert checkpoint.architecture == "llama" and checkpoint.names() == {"w", "v"}
        assert meta["some.number"] == 7 and meta["some.truth"] is True
        assert meta["some.texts"] == ["a", "ü", ""] and meta["some.numbers"] == [1.5, -2.0]
        kept = checkpoint.tensor("v")
    assert kept.sum().isfinite()  # a tensor outlives the file


# ------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.999])
def test_truncated(small: Path, share: float) -> None:
    data = small.read_bytes()
    small.write_bytes(data[: max(5, int(len(data) * share))])
    with pytest.raises(Damaged) as caught:
        open_checkpoint(small)
    assert str(small) in caught.value.message and "pull --force" in (caught.value.hint or "")


def test_every_cut_of_the_header_is_noticed(small: Path) -> None:
    data = small.read_bytes()
    for size in range(8, 400, 7):
        small.write_bytes(data[:size])
        with pytest.raises(Damaged):
            open_checkpoint(small)


def test_flipped_header_bytes_never_crash(small: Path) -> None:
    data = small.read_bytes()
    for at in range(4, 420):
        broken = bytearray(data)
        broken[at] ^= 0xFF
        small.write_bytes(broken)
        try:
            with open_checkpoint(small) as checkpoint:
                for name in checkpoint.names():
                    checkpoint.tensor(name)
        except StartupError as error:
            assert error.message


def test_wrong_magic_and_version(small: Path) -> None:
    data = small.read_bytes()
    small.write_bytes(b"<htm" + data[4:])
    with pytest.raises(StartupError, match="not a GGUF file"):
        open_checkpoint(small)
    small.write_bytes(data[:4] + struct.pack("<I", 99) + data[8:])
    with pytest.raises(StartupError, match="version 99"):
        open_checkpoint(small)
    small.write_bytes(b"")
    with pytest.raises(StartupError, match="not a GGUF file"):
        open_checkpoint(small)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    values = np.full((2, 32), np.nan, np.float32)
    path = write(tmp_path / "nan.gguf", {"w": (values, Kind.F32)})
    with open_checkpoint(path) as checkpoint:
        with pytest.raises(Damaged, match="'w' has values that are no numbers"):
            checkpoint.tensor("w")
        with pytest.raises(Damaged, match="'x' is missing"):
            checkpoint.tensor("x")


def test_unknown_architecture_names_the_known(tmp_path: Path) -> None:
    values = np.ones((2, 32), np.float32)
    path = write(tmp_path / "m.gguf", {"w": (values, Kind.F32)}, arch="mamba9")
    with open_checkpoint(path) as checkpoint, pytest.raises(StartupError, match="'mamba9'") as got:
        lookup(checkpoint)
    assert "llama" in (got.value.hint or "")


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(StartupError, match="No model at"):
        open_checkpoint(tmp_path / "nothing")
    config = tmp_path / "config.json"
    config.write_text("{")
    with pytest.raises(Damaged):
        open_checkpoint(tmp_path)
    config.write_text("{}")
    with pytest.raises(Damaged, match="architectures is missing"):
        open_checkpoint(tmp_path)
    config.write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(StartupError, match="No weights"):
        open_checkpoint(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    with pytest.raises(StartupError, match=r"one\.safetensors is missing"):
        open_checkpoint(tmp_path)
    save_file({"a": torch.arange(6.0).view(2, 3)}, str(tmp_path / "one.safetensors"))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.shape("a") == (2, 3)
        assert checkpoint.tensor("a").tolist() == [[0, 1, 2], [3, 4, 5]]
    data = (tmp_path / "one.safetensors").read_bytes()
    (tmp_path / "one.safetensors").write_bytes(data[:-4])
    with pytest.raises(Damaged):
        open_checkpoint(tmp_path)


# ------------------------------------------------------------------------------- digest


def test_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOG_CACHE", str(tmp_path / "cache"))
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    sha = {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in (one, two)}
    assert digest([one]) == sha[one]
    lines = f"one {sha[one]}\ntwo {sha[two]}\n"
    assert digest([one, two]) == hashlib.sha256(lines.encode()).hexdigest()
    assert str(two) in (tmp_path / "cache" / "digests.json").read_text()
    one.write_bytes(b"3")
    os.utime(one, ns=(1, 1))  # whatever the clock's resolution
    assert digest([one]) == hashlib.sha256(b"3").hexdigest()
    (tmp_path / "cache" / "digests.json").write_text("broken")
    assert digest([two]) == sha[two]
