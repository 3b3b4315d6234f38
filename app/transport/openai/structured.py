"""What holds an answer to a form: ``response_format``, ``structured_outputs``, forced tools."""

from __future__ import annotations

from typing import Any

from app.transport.openai.errors import refusal
from app.transport.openai.tools import Tools, schema

__all__ = ["structured"]

#: Names in ``structured_outputs`` -> names in the engine's parameters.
KINDS = {
    "json": "json_schema",
    "json_object": "json_object",
    "regex": "regex",
    "grammar": "grammar",
    "choice": "choice",
}


def structured(format: Any, outputs: dict[str, Any] | None, tools: Tools) -> dict[str, Any] | None:
    """The engine's parameter ``structured``; None: the answer is free.

    Raises:
        ApiError: 400: a form is not known, or several are asked for.

    """
    found = [
        form
        for form in (_response_format(format), _outputs(outputs), _forced(tools))
        if form is not None
    ]
    if len(found) > 1:
        raise refusal(
            "structured_outputs" if outputs else "response_format",
            "only one of response_format, structured_outputs and a forced tool can be had",
        )
    return found[0] if found else None


def _forced(tools: Tools) -> dict[str, Any] | None:
    found = schema(tools)
    return None if found is None else {"json_schema": found}


def _response_format(given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise refusal("response_format", "response_format must be an object")
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema":
        # beside its type in the Responses API, in an object of its own in chat completions
        wrapper = given.get("json_schema", given)
        found = wrapper.get("schema") if isinstance(wrapper, dict) else None
        if not isinstance(found, dict | bool):
            at = "response_format.json_schema.schema"
            raise refusal(at, f"{at} must be a JSON schema")
        return {"json_schema": found}
    raise refusal(
        "response_format.type",
        f"response_format.type must be text, json_object or json_schema, not {kind!r}",
    )


def _outputs(given: dict[str, Any] | None) -> dict[str, Any] | None:
    asked = {name: value for name, value in (given or {}).items() if value not in (None, False)}
    if not asked:
        return None
    unknown = next((name for name in asked if name not in KINDS), None)
    if unknown is not None:
        at = f"structured_outputs.{unknown}"
        raise refusal(at, f"{at} is not supported", code="unsupported_parameter")
    if len(asked) > 1:
        raise refusal("structured_outputs", f"structured_outputs must have one of {list(KINDS)}")
    ((name, value),) = asked.items()
    return {KINDS[name]: _form(name, value)}


def _form(name: str, value: Any) -> Any:
    at = f"structured_outputs.{name}"
    if name == "choice":
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise refusal(at, f"{at} must be an array of texts that are not empty")
        return value
    if name == "json" and not isinstance(value, dict | bool):
        raise refusal(at, f"{at} must be a JSON schema")
    if name in ("regex", "grammar") and not isinstance(value, str):
        raise refusal(at, f"{at} must be a string")
    return value
