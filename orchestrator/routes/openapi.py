"""The API's description: every operation says how it fails, in the one form that errors have here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from musetalk_agent.protocol.problems import MEDIA_TYPE, Problem

_REF = "#/components/schemas/{model}"
_FAILURES = {"4XX": "The request cannot be served; `code` says why.", "5XX": "The service cannot serve it now."}


def install(app: FastAPI) -> None:
    """Makes `/openapi.json` tell of problem+json instead of FastAPI's own error bodies."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_problems(made())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema


def _with_problems(schema: dict[str, Any]) -> dict[str, Any]:
    _, definitions = models_json_schema([(Problem, "serialization")], ref_template=_REF)
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    components.update(definitions["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    content = {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model=Problem.__name__)}}}
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            for status, description in _FAILURES.items():
                operation["responses"][status] = {"description": description, "content": content}
    return schema
