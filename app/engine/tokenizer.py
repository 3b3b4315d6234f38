"""Text to token ids and back."""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer as _Backend

from app.engine.vocabulary import from_gguf
from app.engine.weights.checkpoint import Checkpoint, Damaged, open_checkpoint
from app.engine.weights.safetensors import read_json
from app.errors import StartupError

__all__ = ["Tokenizer"]

# tokens by which models say that a turn is over, beside the one their metadata names
_TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
)


class Tokenizer:
    """The tokenizer of a model.

    Attributes:
        eos: Ids that end a generation, the model's main one first.
        named: Text of the special tokens a chat template may ask for (``bos_token`` ...).
        chat_template: Source of the model's chat template, or None.

    """

    def __init__(
        self,
        backend: _Backend,
        *,
        special: frozenset[int],
        eos: list[int],
        named: dict[str, str],
        chat_template: str | None,
    ) -> None:
        self._backend = backend
        self._special = special
        self._lock = threading.Lock()  # the backend's switch for special tokens is shared state
        self._bytes: dict[int, bytes] = {}
        self.named, self.chat_template = named, chat_template
        ends = [backend.token_to_id(text) for text in _TURN_ENDS]
        self.eos = list(dict.fromkeys([*eos, *(i for i in ends if i in special)]))
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> Tokenizer:
        """Build the tokenizer that belongs to a checkpoint.

        Raises:
            StartupError: it is missing or of an unknown kind.

        """
        if checkpoint.format == "gguf":
            return cls._from_gguf(checkpoint)
        return cls._from_folder(checkpoint.path, checkpoint.metadata)

    @classmethod
    def open(cls, path: Path) -> Tokenizer:
        """Build the tokenizer of a model's file or folder, without its weights or torch.

        Raises:
            StartupError: as `load`.

        """
        config = path / "config.json"
        if config.is_file():
            return cls._from_folder(path, read_json(config))
        with open_checkpoint(path) as checkpoint:
            return cls.load(checkpoint)

    @classmethod
    def _from_gguf(cls, checkpoint: Checkpoint) -> Tokenizer:
        meta = checkpoint.metadata
        backend, special = from_gguf(checkpoint.path, meta)
        tokens = meta["tokenizer.ggml.tokens"]
        names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        named = {}
        for name, key in names.items():
            index = meta.get(f"tokenizer.ggml.{key}_token_id")
            if isinstance(index, int) and 0 <= index < len(tokens):
                named[f"{name}_token"] = tokens[index]
        ends = [meta.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
        return cls(
            backend,
            special=special,
            eos=[i for i in ends if isinstance(i, int)],
            named=named,
            chat_template=meta.get("tokenizer.chat_template"),
        )

    @classmethod
    def _from_folder(cls, path: Path, config: dict[str, Any]) -> Tokenizer:
        file = path / "tokenizer.json"
        if not file.is_file():
            raise StartupError(
                f"{file} is missing",
                hint="Save the tokenizer in the fast format: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
            )
        try:
            backend = _Backend.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise Damaged(file, str(error)) from None
        special = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        settings = _optional(path / "tokenizer_config.json")
        named = {
            name: text
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if (text := _token_text(settings.get(name)))
        }
        eos: list[int] = []
        for source in (_optional(path / "generation_config.json"), config):
            value = source.get("eos_token_id")
            eos += [value] if isinstance(value, int) else value or []
        end = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
        if end is not None:
            eos.append(end)
        return cls(
            backend,
            special=frozenset(special),
            eos=eos,
            named=named,
            chat_template=_folder_template(path, settings),
        )

    # ------------------------------------------------------------------------------- use

    @property
    def vocab_size(self) -> int:
        """How many ids the tokenizer knows."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text.

        With ``special`` false, text that looks like a special token stays plain text: the result
        never holds a control id. No token is added at either end.
        """
        if special:
            with self._lock:
                self._backend.encode_special_tokens = False
                try:
                    return list(self._backend.encode(text, add_special_tokens=False).ids)
                finally:
                    self._backend.encode_special_tokens = True
        with self._lock:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if self._special.isdisjoint(ids):
            return ids
        # a vocabulary whose plain rules can build a control token: spell the text out
        return [i for c in text for i in self._plain(c)]

    def _plain(self, char: str) -> list[int]:
        with self._lock:
            ids: list[int] = self._backend.encode(char, add_special_tokens=False).ids
        return [i for i in ids if i not in self._special]

    def specials(self, text: str) -> list[tuple[int, int, int]]:
        """Special tokens in a text as ``(start, end, id)``, in order."""
        with self._lock:
            self._backend.encode_special_tokens = False
            try:
                found = self._backend.encode(text, add_special_tokens=False)
            finally:
                self._backend.encode_special_tokens = True
        return [
            (start, end, i)
            for i, (start, end) in zip(found.ids, found.offsets, strict=True)
            if i in self._special
        ]

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD."""
        return str(self._backend.decode(ids, skip_special_tokens=skip_special))

    def token_bytes(self, index: int) -> bytes:
        """The bytes a token stands for; empty for special and unknown ids."""
        known = self._bytes.get(index)
        if known is None:
            known = self._bytes[index] = self._spell(index)
        return known

    def spelling(self, index: int) -> bytes:
        """The same, but the text of a special token."""
        return self.token_bytes(index) or (self._backend.id_to_token(index) or "").encode()

    def is_special(self, index: int) -> bool:
        """Whether the id is a control token."""
        return index in self._special

    @cached_property
    def special_texts(self) -> tuple[str, ...]:
        """Texts of all control tokens."""
        return tuple(self._backend.id_to_token(i) or "" for i in sorted(self._special))

    # -------------------------------------------------------------------------- spelling

    @cached_property
    def _alphabet(self) -> dict[str, int] | None:
        """Character to byte of a byte-level vocabulary; None for SentencePiece ones."""
        decoder = msgspec.json.decode(self._backend.to_str()).get("decoder")
        return _byte_alphabet() if '"ByteLevel"' in msgspec.json.encode(decoder).decode() else None

    @cached_property
    def _literal(self) -> dict[int, bytes]:
        """Added tokens that are plain text."""
        added = self._backend.get_added_tokens_decoder()
        return {i: t.content.encode() for i, t in added.items() if not t.special}

    def _spell(self, index: int) -> bytes:
        if index in self._special or index < 0:
            return b""
        if index in self._literal:
            return self._literal[index]
        text = self._backend.id_to_token(index)
        if text is None:
            return b""
        if self._alphabet is not None:
            try:
                return bytes(self._alphabet[c] for c in text)
            except KeyError:
                return bytes(text, "utf-8")
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes.fromhex(text[3:5])
        return text.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins of GPT-2's byte-level BPE: a byte that is printable in Latin-1
    stands for itself, the others for characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    table = {chr(b): b for b in printable}
    table.update({chr(256 + n): b for n, b in enumerate(others)})
    return table


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _folder_template(path: Path, settings: dict[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    value = settings.get("chat_template") or _optional(path / "chat_template.json").get(
        "chat_template"
    )
    if isinstance(value, list):  # several by name
        by_name = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
        value = by_name.get("default") or next(iter(by_name.values()), None)
    return value if isinstance(value, str) else None
