"""The same model in ``transformers``, from the same file: baseline of speed, oracle of numbers.

Weights go through the ``gguf`` package's own reader and dequantization, so that nothing of the
engine's loading is taken for granted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["reference"]

_MODULES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def reference(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Build ``LlamaForCausalLM`` from a GGUF file, ready to evaluate."""
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import LlamaForCausalLM

    reader = GGUFReader(str(path))
    config = _config(reader)
    state = {}
    for tensor in reader.tensors:
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        name, heads = _name(tensor.name, config)
        if heads:
            # a head's rows are stored as pairs (i, i + half)
            halves = values.reshape(heads, -1, 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        state[name] = torch.from_numpy(values.copy()).to(dtype)
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(state, assign=True, strict=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers were on meta
    model.train(False)
    return model


def _name(stored: str, config: Any) -> tuple[str, int]:
    """A tensor's name in transformers, and the heads whose rows are permuted (0: none)."""
    if stored in _OUTER:
        return _OUTER[stored], 0
    _, layer, module, kind = stored.split(".")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    return f"model.layers.{layer}.{_MODULES[module]}.{kind}", heads.get(module, 0)


def _config(reader: Any) -> Any:
    from transformers import LlamaConfig

    def value(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    heads = value("attention.head_count")
    return LlamaConfig(
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=value("attention.head_count_kv"),
        head_dim=value("embedding_length") // heads,
        vocab_size=value("vocab_size"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
