"""Forms of answers: what is refused and where, masks as the oracle of validity, real schemas."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from app.engine.blocks import BlockManager
from app.engine.masks import members
from app.engine.runner import ModelRunner
from app.engine.sampling import SamplingParams, Structured, validate
from app.engine.scheduler import Scheduler
from app.engine.sequence import Sequence
from app.engine.structured import MAX_FORM, Guide, Guides, check
from app.engine.tokenizer import Tokenizer
from app.errors import InputError
from app.events.catalogue import ChatMessage
from tests.engine.model.corpus import SCHEMAS

# ------------------------------------------------------------------------------- what is refused


def inside(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"type": "array", "items": schema}}}


AT = "params.structured.json_schema.properties.a.items"


@pytest.mark.parametrize(
    ("form", "field", "message"),
    [
        ({}, "params.structured", "exactly one of"),
        ({"json_object": True, "regex": "a"}, "params.structured", "not json_object, regex"),
        ({"json_schema": False}, "params.structured.json_schema", "nothing is valid"),
        ({"json_schema": inside({"type": "strin"})}, AT, "strin"),
        ({"json_schema": inside({"type": "string", "pattern": "(["})}, AT, "unclosed"),
        ({"json_schema": inside({"not": {"type": "null"}})}, AT, 'not supported: "not"'),
        ({"json_schema": inside({"$ref": "#/$defs/x"})}, AT, "does not exist"),
        ({"json_schema": inside(5)}, AT, "must be an object or boolean"),
        (
            {"json_schema": {"$defs": {"x": {"uniqueItems": True}}, "$ref": "#/$defs/x"}},
            "params.structured.json_schema.$defs.x",
            "uniqueItems",
        ),
        (
            {
                "json_schema": inside(
                    {"anyOf": [{}, {"minimum": 3, "maximum": 2, "type": "integer"}]}
                )
            },
            AT,
            "",
        ),
        ({"json_schema": inside({"oneOf": [{}, {}]})}, AT, "more than one"),
        ({"regex": "(a"}, "params.structured.regex", "unclosed group"),
        ({"grammar": "start: foo"}, "params.structured.grammar", '1(8): unknown name: "foo"'),
        ({"grammar": "nonsense"}, "params.structured.grammar", "line 1"),
        ({"choice": ()}, "params.structured.choice", "must have choices"),
        ({"choice": ("a", "")}, "params.structured.choice", "must have choices"),
        ({"regex": "a" * MAX_FORM}, "params.structured.regex", "bytes"),
    ],
)
def test_a_form_that_cannot_be_kept_to_is_refused_by_its_place(
    form: dict[str, Any], field: str, message: str
) -> None:
    params = SamplingParams(structured=Structured(**form))
    if not message:  # of two alternatives one is left
        validate(params)
        return
    with pytest.raises(InputError) as caught:
        validate(params)
    assert caught.value.field == field
    assert message in caught.value.message
    assert len(caught.value.message) < 700


def test_a_schema_that_is_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises((InputError, RecursionError)):
        check(Structured(json_schema=schema))


def test_a_format_that_nobody_knows_is_a_remark() -> None:
    check(Structured(json_schema={"type": "string", "format": "password"}))


# ------------------------------------------------------------------------- the guide by itself


@pytest.fixture(scope="module")
def guides(tokenizer: Tokenizer) -> Guides:
    return Guides(tokenizer, 49152)


def follow(guide: Guide, without: list[int] | None = None) -> Any:
    """Which tokens may follow."""
    return members(guide.allowed(without=without or ()), 49152)


FORMS = {
    "regex": Structured(regex=r"\d{2,4}-(north|south)é?"),
    "choice": Structured(choice=("red", "red wine", "naïve 😀", 'a "b"\n\\c')),
    "lark": Structured(grammar='start: "(" (start | /[a-z]{1,3}/) ")"'),
    "gbnf": Structured(grammar='root ::= "x" item+\nitem ::= "," [0-9]'),
    "object": Structured(json_object=True),
    "schema": Structured(
        json_schema={
            "type": "object",
            "properties": {"n": {"type": "number"}, "s": {"type": "string", "maxLength": 5}},
            "required": ["n", "s"],
            "additionalProperties": False,
        }
    ),
}
FULL = {
    "regex": re.compile(r"[0-9]{2,4}-(north|south)é?"),
    "choice": re.compile("|".join(map(re.escape, FORMS["choice"].choice or ()))),
    "lark": re.compile(r"\(+[a-z]{1,3}\)+"),
    "gbnf": re.compile(r"x(,[0-9])+"),
}


def made(form: Structured, output: list[int], **params: Any) -> Sequence:
    return Sequence("r", [1], SamplingParams(structured=form, **params), output=output)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FORMS)), st.integers(0, 2**32), st.booleans())
def test_whatever_masks_allow_is_valid_and_a_new_guide_agrees(
    guides: Guides, tokenizer: Tokenizer, name: str, seed: int, jumps: bool
) -> None:
    """Walk at random through what is allowed; at every step a fresh guide sees the same."""
    random = np.random.default_rng(seed)
    form, ends, output = FORMS[name], set(tokenizer.eos), list[int]()
    guides.release("r")
    while len(output) < 60:
        guide = guides.at(made(form, output))
        assert guide.error is None
        forced = guide.forced() if jumps else []
        if forced:
            output += forced
        else:
            guides.look([made(form, output)])  # as it is done beside the model
            allowed = follow(guide)
            end = [i for i in allowed if i in ends]
            other = Guides.at(guides, Sequence("other", [1], made(form, []).params, output=output))
            assert follow(other).tolist() == allowed.tolist()
            guides.release("other")
            pick = random.choice(end) if end and random.random() < 0.4 else random.choice(allowed)
            output.append(int(pick))
        if output[-1] in ends:
            break
    text = b"".join(map(tokenizer.token_bytes, output)).decode("utf-8", "ignore")
    if output[-1] in ends:
        if name in FULL:
            assert FULL[name].fullmatch(text)
        else:
            value = json.loads(text)
            assert isinstance(value, dict)
            if name == "schema":
                assert Draft202012Validator(form.json_schema).is_valid(value)
    assert not any(tokenizer.is_special(token) for token in output[:-1])


def test_a_guide_goes_back_when_its_output_gets_shorter(
    guides: Guides, tokenizer: Tokenizer
) -> None:
    guides.release("r")
    ids = tokenizer.encode("12-north")
    start = follow(guides.at(made(FORMS["regex"], []))).tolist()
    guides.at(made(FORMS["regex"], ids))
    assert follow(guides.at(made(FORMS["regex"], []))).tolist() == start
    wrong = guides.at(made(FORMS["regex"], tokenizer.encode("north")))
    assert wrong.error is not None
    assert guides.at(made(FORMS["regex"], [])).error is None


def test_an_end_is_taken_out_only_where_something_else_is_left(
    guides: Guides, tokenizer: Tokenizer
) -> None:
    guides.release("r")
    ends = tokenizer.eos
    red = guides.at(made(FORMS["choice"], tokenizer.encode("red")))
    assert set(ends) < set(follow(red))  # or "red wine"
    assert not set(ends) & set(follow(red, ends))
    wine = guides.at(made(FORMS["choice"], tokenizer.encode("red wine")))
    assert follow(wine, ends).tolist() == sorted(ends)


# ------------------------------------------------------------------- real schemas, the real model


def test_a_corpus_of_schemas_is_kept_to(exact: ModelRunner) -> None:
    """Greedy and drawn, all in one batch; prompts are computed in parts."""
    blocks = BlockManager(exact.info.num_blocks, exact.info.block_size)
    scheduler = Scheduler(blocks, context=400, eos=exact.info.eos, max_tokens=100)
    texts: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}
    for name, schema in SCHEMAS.items():
        for temperature in (0.0, 1.0):
            params = SamplingParams(
                max_tokens=150,
                temperature=temperature,
                seed=3,
                structured=Structured(json_schema=schema),
            )
            validate(params)
            turn = ChatMessage(role="user", content=f"Give an example of: {name}")
            sequence = Sequence(f"{name} {temperature}", exact.template.encode([turn]), params)
            exact.prepare(sequence)
            assert scheduler.add(sequence)
    while scheduler.busy:
        works = scheduler.schedule(time.time())
        for sequence, tokens, reason, *_ in scheduler.commit(works, exact.execute(works)):
            texts.setdefault(sequence.request, []).extend(tokens)
            if reason is not None:
                reasons[sequence.request] = reason
                exact.release(sequence.request)
    assert "Failed" not in {type(notice).__name__ for notice in scheduler.notices}
    done = [name for name, reason in reasons.items() if reason == "stop"]
    assert len(reasons) == 2 * len(SCHEMAS) and len(done) >= 1.8 * len(SCHEMAS), reasons
    for name in done:
        value = json.loads(exact.tokenizer.decode(texts[name]))
        schema = SCHEMAS[name.rpartition(" ")[0]]
        Draft202012Validator(schema).validate(value)
