"""What ends a sequence: a token that says so, or that there may be no more. Pure."""

from __future__ import annotations

from collections.abc import Collection

from app.engine.sequence import Sequence

__all__ = ["Endings"]


class Endings:
    """The ends of sequences of one model.

    Args:
        eos: Tokens that end a sequence, unless it ignores them.
        context: Most tokens in a sequence, prompt and output.

    """

    def __init__(self, eos: Collection[int], context: int) -> None:
        self._eos = frozenset(eos)
        self._context = context

    def extend(self, sequence: Sequence, tokens: list[int]) -> tuple[list[int], str | None]:
        """Add tokens up to the one that ends the sequence; those added, and why it ended."""
        for count, token in enumerate(tokens, 1):
            sequence.tokens.append(token)
            reason = self.reason(sequence)
            if reason is not None:
                return tokens[:count], reason
        return tokens, None

    def reason(self, sequence: Sequence) -> str | None:
        """Why the last token of a sequence ends it (``stop``, ``length``), or None.

        End tokens count only behind the first ``min_tokens`` output tokens; but where an answer
        has a form, an end token is there only if the form is complete.
        """
        output = len(sequence.tokens) - sequence.prompt_len
        if not output:
            return None
        params, token = sequence.params, sequence.tokens[-1]
        if params.structured is not None and token in self._eos:
            return "stop"
        ends = (token in self._eos and not params.ignore_eos) or token in params.stop_token_ids
        if ends and output > params.min_tokens:
            return "stop"
        return "length" if self.left(sequence) <= 0 else None

    def left(self, sequence: Sequence) -> int:
        """How many tokens may still come, at most."""
        left = self._context - len(sequence.tokens)
        if sequence.params.max_tokens is None:
            return left
        output = len(sequence.tokens) - sequence.prompt_len
        return min(left, sequence.params.max_tokens - output)
