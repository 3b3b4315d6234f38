"""The Llama architecture: RMS norm, rotary embedding, grouped queries, SwiGLU.

Touvron et al. 2023 (arXiv:2302.13971, arXiv:2307.09288); also SmolLM, Llama 3 and others that
declare it. Numerics follow the reference in ``transformers`` (tests hold the parity).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import torch
from torch.nn import functional as F

from app.engine.models.base import Attend, Model, ModelShape
from app.engine.models.invariant import InvariantLinears
from app.engine.models.linear import Linear
from app.engine.models.rope import Rope, frequencies
from app.engine.weights import Checkpoint, Damaged
from app.errors import StartupError

__all__ = ["Llama", "LlamaConfig"]

_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class LlamaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Hyperparameters, in the words of ``config.json``."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> LlamaConfig:
        """From a parsed ``config.json``, of old or new spelling."""
        values = {k: v for k, v in raw.items() if v is not None}
        heads = values.get("num_attention_heads", 1)
        values.setdefault("num_key_value_heads", heads)
        values.setdefault("head_dim", values.get("hidden_size", 0) // heads)
        rope = values.get("rope_parameters")
        if isinstance(rope, dict):
            values["rope_scaling"] = rope
            values["rope_theta"] = rope.get("rope_theta", values.get("rope_theta", 10000.0))
        if values.get("hidden_act", "silu") != "silu":
            raise StartupError(
                f"The activation {values['hidden_act']!r} is not supported for Llama"
            )
        return msgspec.convert(values, cls, strict=False)

    @classmethod
    def from_gguf(cls, checkpoint: Checkpoint) -> LlamaConfig:
        """From GGUF metadata."""
        meta, arch = checkpoint.metadata, checkpoint.architecture
        values = {
            field: meta[f"{arch}.{key}"]
            for field, key in (
                ("hidden_size", "embedding_length"),
                ("intermediate_size", "feed_forward_length"),
                ("num_hidden_layers", "block_count"),
                ("num_attention_heads", "attention.head_count"),
                ("num_key_value_heads", "attention.head_count_kv"),
                ("max_position_embeddings", "context_length"),
                ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
                ("rope_theta", "rope.freq_base"),
                ("head_dim", "attention.key_length"),
            )
            if f"{arch}.{key}" in meta
        }
        if f"{arch}.expert_count" in meta:
            raise StartupError(f"{checkpoint.path}: mixtures of experts are not supported")
        values["vocab_size"] = checkpoint.shape("token_embd.weight")[0]
        if "rope_freqs.weight" in checkpoint.names():
            factors = checkpoint.tensor("rope_freqs.weight").tolist()
            values["rope_scaling"] = {"rope_type": "factors", "factors": factors}
        elif meta.get(f"{arch}.rope.scaling.type", "none") != "none":
            values["rope_scaling"] = {
                "rope_type": meta[f"{arch}.rope.scaling.type"],
                "factor": meta.get(f"{arch}.rope.scaling.factor", 1.0),
            }
        return cls.from_hf(values)


class _Layer(NamedTuple):
    norm1: torch.Tensor
    qkv: Linear
    out: Linear
    norm2: torch.Tensor
    gate_up: Linear
    down: Linear


class _Reader:
    """Fetches tensors by their ``transformers`` names, checked, converted, GGUF layout undone."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: LlamaConfig,
        place: Callable[[torch.Tensor], torch.Tensor],
        linear: Callable[[torch.Tensor, torch.Tensor | None], Linear],
    ) -> None:
        self.checkpoint, self.config, self.place = checkpoint, config, place
        self.linear = linear
        self.names = checkpoint.names()
        self.parameters = 0

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        stored = self._stored(name)
        tensor = self.checkpoint.tensor(stored)
        if tensor.shape != shape:
            raise Damaged(
                self.checkpoint.path,
                f"tensor {stored!r} has shape {tuple(tensor.shape)}, expected {shape}",
            )
        if self.checkpoint.format == "gguf" and ("q_proj" in name or "k_proj" in name):
            tensor = self._unpermute(tensor)
        self.parameters += tensor.numel()
        return self.place(tensor)

    def has(self, name: str) -> bool:
        return self._stored(name) in self.names

    def fused(self, names: tuple[str, ...], rows: tuple[int, ...], columns: int) -> Linear:
        """Several linear layers of the same input as one."""
        weight = torch.cat(
            [self(f"{n}.weight", r, columns) for n, r in zip(names, rows, strict=True)]
        )
        bias = None
        if self.has(f"{names[0]}.bias"):
            bias = torch.cat([self(f"{n}.bias", r) for n, r in zip(names, rows, strict=True)])
        return self.linear(weight, bias)

    def _stored(self, name: str) -> str:
        if self.checkpoint.format != "gguf":
            return name
        module, kind = name.rsplit(".", 1)
        if module in _GGUF_NAMES:
            return f"{_GGUF_NAMES[module]}.{kind}"
        _, _, layer, rest = module.split(".", 3)
        return f"blk.{layer}.{_GGUF_NAMES[rest]}.{kind}"

    def _unpermute(self, tensor: torch.Tensor) -> torch.Tensor:
        # GGUF stores the rows of a head as pairs (i, i + d/2) side by side
        heads = tensor.shape[0] // self.config.head_dim
        split = tensor.view(heads, self.config.head_dim // 2, 2, *tensor.shape[1:])
        return split.transpose(1, 2).reshape(tensor.shape)


class Llama(Model):
    """A Llama decoder."""

    architectures = ("LlamaForCausalLM",)
    gguf = ("llama",)
    invariant = True

    def __init__(
        self,
        config: LlamaConfig,
        read: _Reader,
        rope: Rope,
        context: int,
        silu: Callable[[torch.Tensor], torch.Tensor] = F.silu,
    ) -> None:
        self.config, self._rope, self._silu = config, rope, silu
        self.shape = ModelShape(
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            vocab=config.vocab_size,
            context=context,
        )
        self.width = config.hidden_size
        self._embed = read("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        self._layers = [self._layer(read, i) for i in range(config.num_hidden_layers)]
        self._norm = read("model.norm.weight", config.hidden_size)
        if read.has("lm_head.weight"):
            self._head = read.fused(("lm_head",), (config.vocab_size,), config.hidden_size)
        else:
            self._head = read.linear(self._embed, None)
        self.parameters = read.parameters

    def _layer(self, read: _Reader, index: int) -> _Layer:
        c, at = self.config, f"model.layers.{index}."
        q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        attn, mlp = at + "self_attn.", at + "mlp."
        return _Layer(
            read(at + "input_layernorm.weight", c.hidden_size),
            read.fused(
                (attn + "q_proj", attn + "k_proj", attn + "v_proj"), (q, kv, kv), c.hidden_size
            ),
            read.fused((attn + "o_proj",), (c.hidden_size,), q),
            read(at + "post_attention_layernorm.weight", c.hidden_size),
            read.fused(
                (mlp + "gate_proj", mlp + "up_proj"), (c.intermediate_size,) * 2, c.hidden_size
            ),
            read.fused((mlp + "down_proj",), (c.hidden_size,), c.intermediate_size),
        )

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
        context: int,
        deterministic: bool = False,
    ) -> Llama:
        """Read the weights. See ``Model.load``."""
        try:
            if checkpoint.format == "gguf":
                config = LlamaConfig.from_gguf(checkpoint)
            else:
                config = LlamaConfig.from_hf(checkpoint.metadata)
        except (msgspec.ValidationError, TypeError, ZeroDivisionError) as error:
            raise StartupError(
                f"{checkpoint.path}: its configuration is unusable: {error}"
            ) from None
        freqs = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        longest = config.max_position_embeddings
        if context > longest:
            raise StartupError(
                f"engine.max_context is {context}, but the model was made for {longest} tokens",
                hint=f"Set it to at most {longest}, or to 0 for all of it.",
            )
        context = context or longest
        rope = Rope(freqs, context, device=device, dtype=dtype)
        linear = InvariantLinears() if deterministic else Linear
        read = _Reader(checkpoint, config, lambda t: t.to(device, dtype), linear)
        return cls(config, read, rope, context, _silu if deterministic else F.silu)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attend: Attend,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """One pass. See ``Model.forward``."""
        return self.head(self.hidden(tokens, positions, attend, rows))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits. See ``Model.head``."""
        return self._head(hidden)

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attend: Attend,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """One pass up to the head. See ``Model.hidden``."""
        c = self.config
        heads, kv, dim, eps = (
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
            c.rms_norm_eps,
        )
        width, wide = (c.hidden_size,), c.intermediate_size
        table = self._rope.at(positions)
        h = self._embed.index_select(0, tokens)
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(F.rms_norm(h, width, layer.norm1, eps)).view(-1, heads + 2 * kv, dim)
            qk = self._rope(qkv[:, : heads + kv], table)
            mixed = attend(index, qk[:, :heads], qk[:, heads:], qkv[:, heads + kv :])
            h = layer.out.add_to(h, mixed)
            gate_up = layer.gate_up(F.rms_norm(h, width, layer.norm2, eps))
            h = layer.down.add_to(h, self._silu(gate_up[:, :wide]).mul_(gate_up[:, wide:]))
        if rows is not None:
            h = h.index_select(0, rows)
        return F.rms_norm(h, width, self._norm, eps)


def _silu(x: torch.Tensor) -> torch.Tensor:
    """``F.silu``, which rounds the last few of a row otherwise where its width is odd."""
    wide = x.float()
    return (wide / wide.neg().exp_().add_(1)).to(x.dtype)
