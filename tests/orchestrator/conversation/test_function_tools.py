"""What a caller may give as a function, and which arguments fit it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.conversation import function_tools as module
from orchestrator.conversation.function_tools import FunctionTool, fault
from orchestrator.conversation.options import ConversationRequest

ORDER = {
    "type": "object",
    "properties": {"number": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1}},
    "required": ["number"],
    "additionalProperties": False,
}


def tool(**changes: Any) -> dict[str, Any]:
    return {
        "name": "order",
        "description": "An order.",
        "parameters": ORDER,
        "url": "https://desk.example/o",
        **changes,
    }


def nested(depth: int) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": nested(depth - 1)}} if depth else {"type": "object"}


def test_a_function_needs_a_name_and_an_address_only() -> None:
    (made,) = ConversationRequest.model_validate({"tools": [{"name": "now", "url": "http://desk.example/"}]}).tools
    assert fault(made.parameters, {}) is None and fault(made.parameters, {"a": 1}) is not None
    assert "desk.example" not in repr(made)


@pytest.mark.parametrize(
    ("tools", "where", "what"),
    [
        ([tool(), tool(name="an order")], ("tools", 1, "name"), "pattern"),
        ([tool(name="")], ("tools", 0, "name"), "pattern"),
        ([tool(description="x" * 1025)], ("tools", 0, "description"), "1024"),
        ([tool(url="ftp://desk.example/o")], ("tools", 0, "url"), "https:// and http://"),
        ([tool(url="https://user:pass@desk.example/o")], ("tools", 0, "url"), "user name"),
        ([tool(parameters={"type": "string"})], ("tools", 0, "parameters"), "object"),
        ([tool(parameters={"type": "object", "required": "a"})], ("tools", 0, "parameters"), r"\$.required"),
        ([tool(parameters={"type": "object", "title": "x" * 8192})], ("tools", 0, "parameters"), "8192 bytes"),
        (
            [tool(parameters={"type": "object", "properties": {f"p{n}": {} for n in range(65)}})],
            ("tools", 0, "parameters"),
            "64 properties, not 65",
        ),
        ([tool(parameters=nested(6))], ("tools", 0, "parameters"), "12 deep"),
        ([tool(), tool()], ("tools",), "the name order"),
        ([tool(name=f"f{n}") for n in range(17)], ("tools",), "16 items"),
        (
            [tool(name=f"f{n}", parameters={"type": "object", "title": "x" * 8000}) for n in range(5)],
            ("tools",),
            "32768 bytes together",
        ),
        ([tool(secret="x")], ("tools", 0, "secret"), "Extra"),
    ],
)
def test_a_bad_one_is_refused_with_its_place(tools: list[dict[str, Any]], where: tuple[object, ...], what: str) -> None:
    with pytest.raises(ValidationError, match=what) as caught:
        ConversationRequest.model_validate({"tools": tools})
    (error,) = caught.value.errors()
    assert error["loc"] == where


def test_as_much_as_may_be_is_taken() -> None:
    ConversationRequest.model_validate({"tools": [tool(name=f"f{n}") for n in range(16)]})
    FunctionTool.model_validate(tool(parameters=nested(5)))
    properties = {f"p{n}": {"type": "string"} for n in range(64)}
    FunctionTool.model_validate(tool(parameters={"type": "object", "properties": properties}))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"number": "A1"}, None),
        ({"number": "A1", "days": 2}, None),
        ({}, "$: 'number' is a required property"),
        ({"number": 7}, "$.number: 7 is not of type 'string'"),
        ({"number": "A1", "days": 0}, "$.days: 0 is less than the minimum of 1"),
        ({"number": "A1", "x": 1}, "$: Additional properties are not allowed ('x' was unexpected)"),
        ({"number": "A" * 20000}, "The arguments have 20014 bytes, at most 16384 are allowed."),
    ],
)
def test_arguments_fit_or_the_model_reads_why_not(arguments: dict[str, Any], what: str | None) -> None:
    assert fault(ORDER, arguments) == what


def test_schema_and_arguments_of_strangers_cost_little_and_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "(a+)+$"}, "b": {"$ref": "http://127.0.0.1:9/schema"}},
    }
    assert (
        fault(FunctionTool.model_validate(tool(parameters=hostile)).parameters, {"a": "a" * 50 + "b", "b": 1}) is None
    )
    wide = {"type": "object", "properties": {"a": {"items": {"anyOf": [{"type": "string"}] * 300}}}}
    FunctionTool.model_validate(tool(parameters=wide))
    assert fault(wide, {"a": ["x"]}) is None
    assert fault(wide, {"a": list(range(2500))}) == "The arguments are too large for their schema."
    listed = {"type": "object", "properties": {"a": {"items": {"enum": list(range(1000))}}}}
    assert fault(listed, {"a": [999]}) is None
    monkeypatch.setattr(module, "_CHECKS_MAX", 900)
    assert fault(listed, {"a": [999]}) == "The arguments are too large for their schema."
