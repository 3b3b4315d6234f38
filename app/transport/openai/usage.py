"""How many tokens a call took."""

from __future__ import annotations

from typing import Any

from app.events.catalogue import Payload, RequestFinished, RequestStarted, TokensGenerated, Usage

__all__ = ["Counter"]


class Counter:
    """Adds up the requests of a call.

    Args:
        requests: How many there are.
        choices: How many of them share a prompt, which counts once.

    """

    def __init__(self, requests: int, choices: int) -> None:
        self._each = [Usage()] * requests
        self._choices = choices

    def feed(self, index: int, payload: Payload) -> None:
        """Take in what happened to a request."""
        known = self._each[index]
        match payload:
            case RequestStarted(prompt_tokens=prompt, cached_tokens=cached):
                done = known.completion_tokens
                self._each[index] = Usage(
                    prompt_tokens=prompt, cached_tokens=cached, completion_tokens=done
                )
            case TokensGenerated(tokens=tokens):
                self._each[index] = Usage(
                    prompt_tokens=known.prompt_tokens,
                    cached_tokens=known.cached_tokens,
                    completion_tokens=known.completion_tokens + len(tokens),
                )
            case RequestFinished(usage=usage):
                self._each[index] = usage
            case _:
                pass

    def total(self) -> Usage:
        """The sum so far."""
        prompts = self._each[:: self._choices]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
            cached_tokens=sum(usage.cached_tokens for usage in prompts),
            completion_tokens=sum(usage.completion_tokens for usage in self._each),
        )

    def chat(self) -> dict[str, Any]:
        """The sum as chat completions and completions say it."""
        usage = self.total()
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
