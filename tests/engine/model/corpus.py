"""Schemas as people write them: tool arguments, records, unions, formats, recursion."""

from __future__ import annotations

from typing import Any

__all__ = ["SCHEMAS"]


def record(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


WORD = {"type": "string", "maxLength": 12}

SCHEMAS: dict[str, dict[str, Any]] = {
    "the weather tool's arguments": record(
        location={"type": "string", "description": "City", "maxLength": 20},
        unit={"type": "string", "enum": ["celsius", "fahrenheit"]},
    ),
    "a person as pydantic has it": {
        "$defs": {
            "Address": {
                "properties": {
                    "street": {"title": "Street", **WORD},
                    "zip": {"pattern": "^[0-9]{5}$", "title": "Zip", "type": "string"},
                },
                "required": ["street", "zip"],
                "title": "Address",
                "type": "object",
                "additionalProperties": False,
            }
        },
        "properties": {
            "name": {"title": "Name", **WORD},
            "age": {"anyOf": [{"type": "integer", "maximum": 150}, {"type": "null"}]},
            "address": {"$ref": "#/$defs/Address"},
        },
        "required": ["name", "age", "address"],
        "title": "Person",
        "type": "object",
        "additionalProperties": False,
    },
    "a cat or a dog": {
        "oneOf": [
            record(kind={"const": "cat"}, lives={"type": "integer", "minimum": 0, "maximum": 9}),
            record(kind={"const": "dog"}, good={"type": "boolean"}),
        ],
        "discriminator": {"propertyName": "kind"},
    },
    "steps of a solution": record(
        steps={
            "type": "array",
            "items": record(explanation=WORD, output=WORD),
            "minItems": 1,
            "maxItems": 2,
        },
        final_answer=WORD,
    ),
    "a tree": {
        "$defs": {
            "node": record(
                ["value"],
                value={"type": "integer", "minimum": 0, "maximum": 99},
                left={"anyOf": [{"type": "null"}, {"type": "integer", "maximum": 9, "minimum": 0}]},
            )
        },
        "$ref": "#/$defs/node",
    },
    "an event": record(
        id={"type": "string", "format": "uuid"},
        at={"type": "string", "format": "date-time"},
        mail={"type": "string", "pattern": "^[a-z]{1,8}@example\\.org$"},
    ),
    "a price list": {
        "type": "array",
        "minItems": 1,
        "maxItems": 3,
        "items": record(
            sku={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}, stock={"type": "boolean"}
        ),
    },
    "a version": {"type": "string", "pattern": "^v[0-9]{1,2}\\.[0-9]{1,2}$"},
    "a choice of colours": {
        "type": "array",
        "items": {"enum": ["red", "green", 3, None, True]},
        "minItems": 2,
        "maxItems": 3,
    },
    "a point": {
        "type": "array",
        "prefixItems": [
            {"type": "integer", "minimum": -90, "maximum": 90},
            {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 180},
        ],
        "items": False,
        "minItems": 2,
    },
    "settings": {
        "type": "object",
        "properties": {"debug": {"type": "boolean", "default": False}, "level": {"enum": [1, 2]}},
        "required": ["debug"],
        "additionalProperties": False,
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "https://example.org/settings.json",
    },
    "a ticket with all of": {
        "allOf": [
            {"type": "object", "properties": {"title": WORD}, "required": ["title"]},
            {"properties": {"open": {"type": "boolean"}}, "required": ["open"]},
        ],
        "additionalProperties": False,
        "properties": {"title": {}, "open": {}},
    },
}
