"""Tiny Llama models that transformers saves and the engine loads: every variant of the family."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE

from app.engine.frames import CoreConfig
from app.engine.models.registry import known, lookup
from app.engine.runner import ModelRunner
from app.engine.weights import open_checkpoint
from app.errors import StartupError
from tests.engine.model.steps import Bench

BASE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "one key head": {"num_key_value_heads": 1},
    "a key head each": {"num_key_value_heads": 6},
    "wide heads": {"head_dim": 16},
    "llama3 rope": {"rope_parameters": LLAMA3},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
}


def save(folder: Path, *, shard: str = "50GB", **changes: Any) -> Any:
    """A random model and a tokenizer of bytes; returns the model of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(BASE | changes)))
    model.train(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder, max_shard_size=shard)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", "<unk>", *alphabet]
    backend = Backend(BPE({w: i for i, w in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(words[:3])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": {"content": "</s>"}, "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    return model


def load(folder: Path, **changes: Any) -> ModelRunner:
    settings = {"dtype": "float32", "threads": 1, "kv_memory": 1 << 20, "max_batch": 8}
    return ModelRunner.load(CoreConfig(model=str(folder), **(settings | changes)))


def tokens(count: int) -> list[int]:
    random = torch.Generator().manual_seed(count)
    return torch.randint(3, 259, (count,), generator=random).tolist()


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_logits(tmp_path: Path, name: str) -> None:
    model = save(tmp_path, **VARIANTS[name])
    runner = load(tmp_path)
    bench = Bench(runner)
    for count in (1, 90, 200):
        ids = tokens(count)
        want = model(torch.tensor([ids])).logits[0]
        sequence = bench.sequence(ids[: count // 2 + 1])
        got = [runner.logits([bench.prefill(sequence)])[0]]
        for token in ids[count // 2 + 1 : count // 2 + 4]:
            sequence.tokens.append(token)
            got.append(runner.logits([bench.decode(sequence)])[0])
        wanted = want[count // 2 : count // 2 + len(got)]
        torch.testing.assert_close(torch.stack(got), wanted, atol=1e-3, rtol=1e-4)


@torch.inference_mode()
def test_shards(tmp_path: Path) -> None:
    model = save(tmp_path, shard="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    runner = load(tmp_path)
    bench = Bench(runner)
    got = runner.logits([bench.prefill(bench.sequence(tokens(20)))])[0]
    want = model(torch.tensor([tokens(20)])).logits[0, -1]
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)
    assert runner.info.parameters == sum(p.numel() for p in model.parameters())
    assert len(runner.info.weights) == 64


def test_tokenizer_and_template_of_a_folder(tmp_path: Path) -> None:
    save(tmp_path)
    runner = load(tmp_path)
    assert runner.info.eos == [1] and runner.tokenizer.named["bos_token"] == "<s>"
    ids = runner.template.encode([{"role": "user", "content": "é</s>"}])
    assert ids[0] == 0 and ids[-1] == 1 and 1 not in ids[1:-1]
    assert runner.tokenizer.decode(ids) == "é</s>"
    assert b"".join(map(runner.tokenizer.token_bytes, ids)) == "é</s>".encode()


def test_long_and_short_sequences_together(tmp_path: Path) -> None:
    """Lengths so unlike that they are computed in groups; more than the first block each."""
    save(tmp_path)
    runner = load(tmp_path)
    bench = Bench(runner)
    prompts = [tokens(n) for n in (2, 230, 17, 100, 5, 33)]
    together = bench.generate([bench.sequence(p) for p in prompts], 6)
    for prompt, got in zip(prompts, together, strict=True):
        assert Bench(runner).generate([bench.sequence(prompt)], 6) == [got]


# ---------------------------------------------------------------------------- start-up


def test_cache_must_hold_one_sequence(tmp_path: Path) -> None:
    save(tmp_path)
    need = 256 * 2 * 2 * 2 * 8 * 4  # tokens, layers, keys and values, heads, width, bytes
    runner = load(tmp_path, kv_memory=need)
    assert (runner.info.num_blocks, runner.info.context) == (16, 256)
    with pytest.raises(StartupError, match="256 tokens") as caught:
        load(tmp_path, kv_memory=need - 1)
    assert "engine.kv_memory" in (caught.value.hint or "")
    assert load(tmp_path, kv_memory=need // 2, max_context=100).info.context == 100


def test_context_beyond_the_model(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(StartupError, match="257"):
        load(tmp_path, max_context=257)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_parameters": None}, "yarn"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"hidden_size": 56}, "expected"),
        ({"hidden_size": "wide"}, "configuration"),
        ({"vocab_size": 321}, "expected"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"architectures": ["Falcon"]}, "Falcon"),
    ],
)
def test_configurations_that_do_not_fit(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(StartupError, match=words):
        load(tmp_path)


def test_without_tokenizer(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(StartupError, match=r"tokenizer\.json is damaged"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(StartupError, match=r"tokenizer\.json is missing"):
        load(tmp_path)


def test_no_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(StartupError, match="no GPU"):
        load(tmp_path, device="cuda")


# ----------------------------------------------------------------------------- plugins

PLUGIN = """
from app.engine.models.llama import Llama

class Nonesuch(Llama):
    architectures = ("NonesuchForCausalLM",)
    gguf = ("nonesuch",)
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """A real distribution with an entry point, as pip leaves it behind."""
    (folder / "nonesuch_plugin.py").write_text(PLUGIN)
    info = folder / "nonesuch-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nonesuch\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[everlog.models]\nnonesuch = {target}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "nonesuch_plugin", raising=False)


def test_plugin_adds_an_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plugin = tmp_path / "model", tmp_path / "plugin"
    plugin.mkdir()
    save(model)
    config = json.loads((model / "config.json").read_text())
    config["architectures"] = ["NonesuchForCausalLM"]
    (model / "config.json").write_text(json.dumps(config))
    with open_checkpoint(model) as checkpoint, pytest.raises(StartupError, match="Nonesuch"):
        lookup(checkpoint)
    install(plugin, monkeypatch, "nonesuch_plugin:Nonesuch")
    assert load(model).info.architecture == "NonesuchForCausalLM"


@pytest.mark.parametrize(
    "target, words", [("nonesuch_plugin:PLUGIN", "failed to load"), ("json:dumps", "no subclass")]
)
def test_broken_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, words: str
) -> None:
    install(tmp_path, monkeypatch, target)
    with pytest.raises(StartupError, match=words):
        known()
    shutil.rmtree(tmp_path / "nonesuch-1.0.dist-info")
