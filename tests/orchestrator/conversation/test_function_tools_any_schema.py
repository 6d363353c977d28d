"""Whatever a caller gives as a schema, and a model as arguments: an error with its place, or an answer."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.conversation.function_tools import FunctionTool, fault

KEYWORDS = st.sampled_from(
    "type properties items required enum const anyOf allOf oneOf not if then else additionalProperties prefixItems contains "
    "minContains maxContains minimum maximum multipleOf minLength maxLength minItems maxItems minProperties maxProperties "
    "uniqueItems pattern patternProperties propertyNames dependentRequired dependentSchemas unevaluatedProperties format "
    "$ref $defs $id $anchor $dynamicRef $dynamicAnchor $schema $vocabulary $comment default title a b".split()
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(
        ["object", "array", "string", "integer", "number", "#", "#/$defs/a", "http://127.0.0.1:9/", "a", "("]
    )
    | st.text(max_size=4)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYWORDS, inner, max_size=5), max_leaves=12
)


@given(schema=st.dictionaries(KEYWORDS, VALUES, max_size=6), arguments=st.dictionaries(KEYWORDS, VALUES, max_size=4))
def test_any_schema_is_refused_or_answers(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    try:
        tool = FunctionTool(name="a", url="https://desk.example/", parameters={"type": "object", **schema})
    except ValidationError as error:
        assert [each["loc"] for each in error.errors()] == [("parameters",)]
        return
    answer = fault(tool.parameters, arguments)
    assert answer is None or answer.strip()
