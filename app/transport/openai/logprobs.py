"""Log probabilities as clients read them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["Legacy", "Scored", "Spell", "chat", "prompt"]

Spell = Callable[[int], bytes]
"""The bytes that a token stands for."""


class Scored(Protocol):
    """What the log has of a token: its log probability, and the likeliest at its place."""

    @property
    def logprob(self) -> float:
        """Of the token that was chosen."""
        ...

    @property
    def top(self) -> list[tuple[int, float]]:
        """Token ids with their log probabilities, the likeliest first."""
        ...


def chat(tokens: Sequence[int], scores: Sequence[Scored], spell: Spell) -> list[dict[str, Any]]:
    """Entries of ``logprobs.content`` of a chat completion; control tokens have none."""
    return [
        {
            **_entry(token, score.logprob, spell),
            "top_logprobs": [_entry(other, value, spell) for other, value in score.top],
        }
        for token, score in zip(tokens, scores, strict=False)
        if spell(token)
    ]


def _entry(token: int, logprob: float, spell: Spell) -> dict[str, Any]:
    spelled = spell(token)
    text = spelled.decode("utf-8", "replace")
    return {"token": text, "logprob": finite(logprob), "bytes": list(spelled)}


def prompt(
    scores: Sequence[Scored | None], tokens: Sequence[int], spell: Spell
) -> list[dict[str, Any] | None]:
    """``prompt_logprobs`` as vLLM has them: by token id; null where nothing comes before.

    ``tokens`` are those of the prompt; if they are not known, only the likeliest are there.
    """
    known = len(tokens) == len(scores)
    found: list[dict[str, Any] | None] = []
    for index, score in enumerate(scores):
        if score is None:
            found.append(None)
            continue
        place = dict(score.top)
        if known:
            place.setdefault(tokens[index], score.logprob)
        found.append({str(id): _by_id(id, value, spell) for id, value in place.items()})
    return found


def _by_id(token: int, logprob: float, spell: Spell) -> dict[str, Any]:
    text = spell(token).decode("utf-8", "replace")
    return {"logprob": finite(logprob), "decoded_token": text}


def finite(logprob: float) -> float:
    """A number that JSON has: what cannot be is as unlikely as OpenAI says it is."""
    return max(logprob, -9999.0)


class Legacy:
    """``logprobs`` of a completion: four lists, and how far into the text each token begins.

    Args:
        spell: Of the model's tokenizer.
        offset: Length of the text before the first token.

    """

    def __init__(self, spell: Spell, offset: int = 0) -> None:
        self._spell = spell
        self._offset = offset

    def add(self, tokens: Sequence[int], scores: Sequence[Scored]) -> dict[str, Any]:
        """The lists for some more tokens."""
        lists: dict[str, list[Any]] = {
            "text_offset": [],
            "token_logprobs": [],
            "tokens": [],
            "top_logprobs": [],
        }
        for token, score in zip(tokens, scores, strict=False):
            text = self._text(token)
            if not text:  # a control token
                continue
            lists["text_offset"].append(self._offset)
            lists["token_logprobs"].append(finite(score.logprob))
            lists["tokens"].append(text)
            top = {self._text(other): finite(value) for other, value in reversed(score.top)}
            lists["top_logprobs"].append({**top, text: finite(score.logprob)})
            self._offset += len(text)
        return lists

    def _text(self, token: int) -> str:
        return self._spell(token).decode("utf-8", "replace")
