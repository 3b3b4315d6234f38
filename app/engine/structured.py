"""Structured output: the form of an answer as a grammar, and which tokens it allows next.

Grammars are llguidance's. A matcher is in a state that depends on the output alone, so preemption,
chunking and a new core change nothing: it is brought there again by the output's tokens. What may
follow depends on the tokens so far alone, so it is computed while the model computes, for all at
once, in threads of the grammars' library.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence as Seq

import msgspec
import numpy as np
from llguidance import (
    LLExecutor,
    LLMatcher,
    LLParserLimits,
    LLTokenizer,
    TokenizerWrapper,
    regex_to_lark,
)
from llguidance.gbnf_to_lark import any_to_lark
from llguidance.numpy import fill_next_token_bitmask_par

from app.engine import schema
from app.engine.masks import Bits, less, words
from app.engine.sampling import Structured
from app.engine.sequence import Sequence
from app.engine.tokenizer import Tokenizer
from app.errors import InputError

__all__ = ["MAX_FORM", "Guide", "Guides", "check", "grammar"]

MAX_FORM = 256 * 1024
"""Bytes of the largest form, as JSON."""
_COMPILED = 64  # grammars kept, least recently used forgotten first
_LIMITS = LLParserLimits(verbose_errors=False)
_PROBE = 'A "probe":\n{"naïve": [1, 23], "x": "y z"}'
_KINDS = ("json_schema", "json_object", "regex", "grammar", "choice")


def check(form: Structured, *, field: str = "structured") -> None:
    """Compile a form, without a model.

    Raises:
        InputError: It is malformed, or cannot be kept to; names the field and where in it.

    """
    given = [name for name in _KINDS if getattr(form, name) not in (None, False)]
    if form.json_schema is False:
        given.insert(0, "json_schema")
    if len(given) != 1:
        found = ", ".join(given) or "none"
        raise InputError(f"must have exactly one of {', '.join(_KINDS)}, not {found}", field=field)
    field = f"{field}.{given[0]}"
    size = len(msgspec.json.encode(form))
    if size > MAX_FORM:
        raise InputError(f"at most {MAX_FORM} bytes, not {size}", field=field)
    if form.json_schema is not None:
        schema.check(form.json_schema, field=field)
    elif form.choice is not None and not (form.choice and all(form.choice)):
        raise InputError("must have choices, and none that is empty", field=field)
    else:
        error = LLMatcher.validate_grammar(grammar(form, field=field), limits=_LIMITS)
        if error:
            raise InputError(_plain(error), field=field)


def grammar(form: Structured, *, field: str = "structured") -> str:
    """The grammar of a form that was checked, as llguidance takes it.

    Raises:
        InputError: It cannot be read.

    """
    if form.json_schema is not None:
        return schema.grammar(form.json_schema, field=field)
    if form.json_object:
        return schema.grammar({"type": "object"}, field=field)
    if form.regex is not None:
        # digits are 0 to 9, not those of all scripts
        return str(LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(form.regex, 'd')}/"))
    if form.choice is not None:
        choices = [msgspec.json.encode(choice).decode() for choice in form.choice]
        return str(LLMatcher.grammar_from_lark("start: " + " | ".join(choices)))
    try:
        return str(LLMatcher.grammar_from_lark(any_to_lark(form.grammar or "")))
    except Exception as error:  # plain exceptions of a parser
        raise InputError(str(error), field=field) from None


def _plain(error: str) -> str:
    """What a person needs of an error message."""
    error = re.split(r"<state>|<backtrace>", error)[0].rstrip()
    inner = re.search(r"regex parse error:.*?\nerror: [^\n]*", error, re.DOTALL)
    error = inner[0] if inner else error
    return error if len(error) <= 500 else f"{error[:500]} ..."


class Guide:
    """Where an output is in its grammar.

    Attributes:
        error: Why it can go no further, or None.

    """

    def __init__(self, matcher: LLMatcher, ends: Seq[int], vocab: int) -> None:
        self.error = _plain(matcher.get_error()) or None
        self._matcher = matcher
        self._ends = list(ends)
        self._vocab = vocab
        self._seen = 0  # tokens of the output that the matcher took in
        self._bits: Bits | None = None  # what may follow them, once that was computed

    def follow(self, output: Seq[int]) -> None:
        """Come to where an output ends; it may be shorter than the last one."""
        if self._seen > len(output):
            self._matcher.reset()
            self.error, self._seen, self._bits = None, 0, None
        if self.error is None and self._seen < len(output):
            self._take(list(output[self._seen :]))

    def add(self, token: int) -> list[int]:
        """Take in the next token of the output; returns those that must follow it."""
        if token in self._ends:
            return []
        self._take([token])
        return self.forced()

    def forced(self) -> list[int]:
        """Take in the tokens that must follow, and return them.

        Where nothing more can follow that is the end token.
        """
        found: list[int] = []
        while self.error is None:
            if self._matcher.is_stopped():
                return [*found, self._ends[0]]
            tokens = self._matcher.compute_ff_tokens()
            if not tokens:
                break
            self._take(tokens)
            found += tokens
        return found if self.error is None else []

    def allowed(self, *, without: Seq[int] = ()) -> Bits:
        """Which tokens may follow; if there is a choice, none of those ``without``."""
        if self._bits is None:
            self._bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._judge()
        return less(self._bits, without, self._vocab) if len(without) else self._bits

    def open(self, *, jumps: bool) -> LLMatcher | None:
        """Its matcher, if it is not known yet what may follow; not where nothing is to be chosen.

        Args:
            jumps: Whether tokens without alternative are taken without asking the model.

        """
        if self.error is not None or self._bits is not None:
            return None
        if jumps and (self._matcher.is_stopped() or self._matcher.compute_ff_tokens()):
            return None
        return self._matcher

    def tell(self, bits: Bits) -> None:
        """That was computed by its matcher as what may follow."""
        self._bits = bits
        self._judge()

    def _take(self, tokens: list[int]) -> None:
        self._bits = None
        taken = self._matcher.try_consume_tokens(tokens)
        self._seen += len(tokens)
        self._judge()
        if taken < len(tokens) and self.error is None:
            self.error = f"token {tokens[taken]} does not fit the form"

    def _judge(self) -> None:
        if self._matcher.is_error():
            message = _plain(self._matcher.get_error())
            self.error = f"the form cannot be kept to: {message}"


class Guides:
    """The guides of all requests, and grammars compiled for a tokenizer.

    Args:
        tokenizer: Of the model.
        vocab: Width of its logits.

    """

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self._tokenizer = tokenizer
        self._vocab = vocab
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._guides: dict[str, Guide] = {}
        self._tokens: LLTokenizer | None = None
        self._executor: LLExecutor | None = None
        spelled = b"".join(map(tokenizer.token_bytes, tokenizer.encode(_PROBE)))
        self._exact = spelled == _PROBE.encode()

    def prepare(self, sequence: Sequence) -> None:
        """Make the guide of a sequence that has a form.

        Raises:
            InputError: The form is malformed, or the output so far does not fit it.

        """
        error = self.at(sequence).error
        if error is not None:
            raise InputError(error, field="params.structured")

    def at(self, sequence: Sequence) -> Guide:
        """The guide of a sequence that has a form, at its last token."""
        guide = self._guides.get(sequence.request)
        if guide is None:
            assert sequence.params.structured is not None
            matcher = self._compile(
                grammar(sequence.params.structured, field="params.structured")
            ).deep_copy()
            guide = Guide(matcher, self._tokenizer.eos, self._vocab)
            self._guides[sequence.request] = guide
        guide.follow(sequence.tokens[sequence.prompt_len :])
        return guide

    def look(self, sequences: Seq[Sequence]) -> None:
        """Compute at once what may follow sequences that have forms."""
        found: list[tuple[Guide, LLMatcher]] = []
        for sequence in sequences:
            guide = self.at(sequence)
            matcher = guide.open(jumps=self.jumps(sequence))
            if matcher is not None:
                found.append((guide, matcher))
        if not found:
            return
        if self._executor is None:
            self._executor = LLExecutor()
        bits = np.zeros((len(found), words(self._vocab)), np.int32)
        matchers = [(matcher, row) for row, (_, matcher) in enumerate(found)]
        fill_next_token_bitmask_par(self._executor, matchers, bits)
        for row, (guide, _) in enumerate(found):
            guide.tell(bits[row].view(np.uint8))

    def jumps(self, sequence: Sequence) -> bool:
        """Whether tokens without alternative are taken without asking the model.

        Not where the probabilities of all tokens are wanted, nor with tokenizers that add
        something to a text.
        """
        return self._exact and sequence.params.logprobs is None

    def release(self, request: str) -> None:
        """Forget a request."""
        self._guides.pop(request, None)

    def _compile(self, text: str) -> LLMatcher:
        known = self._compiled.pop(text, None)
        if known is None:
            known = LLMatcher(self._tokenizer_of_grammars(), text, log_level=0, limits=_LIMITS)
            while len(self._compiled) >= _COMPILED:
                self._compiled.popitem(last=False)
        self._compiled[text] = known
        return known

    def _tokenizer_of_grammars(self) -> LLTokenizer:
        if self._tokens is None:  # takes a fraction of a second, so only if it is needed
            words = TokenizerWrapper(_Words(self._tokenizer, self._vocab))
            self._tokens = LLTokenizer(words, n_vocab=self._vocab, eos_token=self._tokenizer.eos)
        return self._tokens


class _Words:
    """A tokenizer as llguidance wants to see it."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self.eos_token_id = tokenizer.eos[0]
        self.bos_token_id = None
        self.special_token_ids = [i for i in range(vocab) if tokenizer.is_special(i)]
        self.tokens = [tokenizer.spelling(i) for i in range(vocab)]
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)
