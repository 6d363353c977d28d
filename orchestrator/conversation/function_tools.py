"""`conversation.tools`: functions that the language model may call, each behind a webhook of the caller's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from jsonschema.validators import create
from pydantic import AfterValidator, Field

from musetalk_agent.protocol.addresses import AddressRefused, parse
from musetalk_agent.protocol.http import Strict

PORTS = {"https": 443, "http": 80}
"""Schemes of a tool's address, as of an avatar's."""
TOOLS_MAX = 16
TOOLS_BYTES = 32 << 10
"""Names, descriptions and schemas of a conversation together."""
SCHEMA_BYTES = 8 << 10
SCHEMA_DEPTH = 12
"""Objects and lists inside each other, in a schema as JSON."""
PROPERTIES_MAX = 64
"""Of one schema, nested ones too."""
ARGUMENTS_BYTES = 16 << 10
_CHECKS_MAX = 5000
"""Keywords that are looked at for one call's arguments: 0.1 s at most. Schema and arguments come from strangers."""
_ERROR_CHARACTERS = 300
_UNCHECKED = frozenset(
    {"$ref", "$dynamicRef", "pattern", "patternProperties", "uniqueItems", "unevaluatedItems", "unevaluatedProperties"}
)
"""The model sees these, and arguments are not checked by them: their cost has no bound, and references could lead outside."""
_Check = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class _TooCostly(Exception):
    """The arguments need more checks than are allowed."""


def _schema(value: dict[str, Any]) -> dict[str, Any]:
    if _depth(value) > SCHEMA_DEPTH:
        raise ValueError(f"a schema nests at most {SCHEMA_DEPTH} deep")
    size = len(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    if size > SCHEMA_BYTES:
        raise ValueError(f"a schema has at most {SCHEMA_BYTES} bytes as JSON, not {size}")
    properties = _properties(value)
    if properties > PROPERTIES_MAX:
        raise ValueError(f"a schema has at most {PROPERTIES_MAX} properties, not {properties}")
    if value.get("type") != "object":
        raise ValueError('the arguments of a function are an object: give "type": "object"')
    try:
        Draft202012Validator.check_schema(value)
    except SchemaError as error:
        raise ValueError(f"not a JSON schema: {error.json_path[:80]}: {error.message[:_ERROR_CHARACTERS]}") from None
    return value


def _address(url: str) -> str:
    try:
        parse(url, PORTS)
    except AddressRefused as error:
        raise ValueError(error.detail) from None
    return url


class FunctionTool(Strict):
    """A function of the model's. `parameters` is the JSON schema (2020-12) of its arguments, `url` takes the call as POST."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str = Field(default="", max_length=1024)
    parameters: Annotated[dict[str, Any], AfterValidator(_schema)] = Field(
        default={"type": "object", "properties": {}, "additionalProperties": False}
    )
    url: Annotated[str, AfterValidator(_address)] = Field(min_length=8, max_length=2048, repr=False)


def _distinct(tools: tuple[FunctionTool, ...]) -> tuple[FunctionTool, ...]:
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two functions have the name {twice}")
    size = sum(
        len(json.dumps([each.name, each.description, each.parameters]).encode("utf-8", "replace")) for each in tools
    )
    if size > TOOLS_BYTES:
        raise ValueError(f"the functions have at most {TOOLS_BYTES} bytes together, not {size}")
    return tools


FunctionTools = Annotated[tuple[FunctionTool, ...], Field(max_length=TOOLS_MAX), AfterValidator(_distinct)]


def fault(schema: dict[str, Any], arguments: dict[str, Any]) -> str | None:
    """What is wrong with a call's arguments, as a sentence for the model; None when they fit."""
    size = len(json.dumps(arguments, ensure_ascii=False).encode("utf-8", "replace"))
    if size > ARGUMENTS_BYTES:
        return f"The arguments have {size} bytes, at most {ARGUMENTS_BYTES} are allowed."
    left = _CHECKS_MAX

    def counted(check: _Check) -> _Check:
        def run(validator: Any, value: Any, instance: Any, whole: Any) -> Iterator[ValidationError]:
            nonlocal left
            left -= len(value) if isinstance(value, list) else 1
            if left < 0:
                raise _TooCostly
            yield from check(validator, value, instance, whole) or ()

        return run

    known = Draft202012Validator.VALIDATORS
    checks = {name: counted(check) for name, check in known.items() if name not in _UNCHECKED}
    validator = create(
        Draft202012Validator.META_SCHEMA, validators=checks, type_checker=Draft202012Validator.TYPE_CHECKER
    )
    try:
        error = best_match(validator(schema).iter_errors(arguments))
    except _TooCostly:
        return "The arguments are too large for their schema."
    return None if error is None else f"{error.json_path}: {error.message}"[:_ERROR_CHARACTERS]


def _depth(value: object) -> int:
    """How deep lists and objects nest, counted no further than one past the limit."""
    level, deep = [value], 0
    while level and deep <= SCHEMA_DEPTH:
        inner: list[object] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        level = [each for each in inner if isinstance(each, dict | list)]
        deep += 1
    return deep


def _properties(value: object) -> int:
    """Entries of every object named `properties`."""
    if isinstance(value, list):
        return sum(map(_properties, value))
    if not isinstance(value, dict):
        return 0
    own = value.get("properties")
    return (len(own) if isinstance(own, dict) else 0) + sum(map(_properties, value.values()))
