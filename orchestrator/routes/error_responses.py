"""Every error as problem+json, and its description in `/openapi.json`."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import Response

from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import MEDIA_TYPE, ErrorCode, ProblemError

_log = logging.getLogger(__name__)
_VALUE_CHARS = 200
_FIELD_CHARS = 80
_SECRET_FIELDS = frozenset({"webhook_secret", "webhook_url", "rtmp_url", "url", "api_key"})
"""Last parts of fields whose values an error does not repeat."""


OPENAI_PATHS = "/v1/"
"""Below it clients of OpenAI's dialect call."""
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def openai_error(error: ProblemError) -> dict[str, Any]:
    """`error` of OpenAI's dialect."""
    problem = Problem.of(error)
    kind = _OPENAI_TYPES.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
    return {"message": problem.detail, "type": kind, "param": problem.field, "code": problem.code.value}


def problem_response(error: ProblemError, path: str = "") -> Response:
    """The response for this error. Below `/v1/` it has OpenAI's `error` beside problem+json's own members."""
    problem = Problem.of(error)
    headers = {"Cache-Control": "no-store"}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.code is ErrorCode.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="orchestrator"'
    members = problem.model_dump(exclude_none=True)
    if path.startswith(OPENAI_PATHS):
        members["error"] = openai_error(error)
    body = json.dumps(members, ensure_ascii=False)
    content = body.encode("utf-8", "replace")  # a wrong value may hold half of a surrogate pair
    return Response(content, status_code=problem.status, headers=headers, media_type=MEDIA_TYPE)


def unauthorized() -> ProblemError:
    """For a request without a key that opens this."""
    return ProblemError(
        ErrorCode.UNAUTHORIZED, "Send the header 'Authorization: Bearer KEY' with one of ORCHESTRATOR_API_KEY's keys."
    )


def invalid(error: RequestValidationError) -> ProblemError:
    """Names the first field at fault and what is wrong with it; further ones are counted."""
    errors = error.errors()
    first = errors[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    field = ".".join(path)[:_FIELD_CHARS] if first["type"] != "json_invalid" else ""
    message = str(first["msg"]).removeprefix("Value error, ")
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    value = None if path and path[-1] in _SECRET_FIELDS else first.get("input")
    return ProblemError(
        ErrorCode.INVALID_REQUEST,
        f"{field}: {message}.{more}" if field else f"The body is wrong: {message}.{more}",
        field=field or None,
        value=value[:_VALUE_CHARS] if isinstance(value, str) else value if isinstance(value, int | float) else None,
    )


def install(app: FastAPI) -> None:
    """Makes the app answer every error as problem+json, and say so in its description."""
    describe_errors(app)

    @app.exception_handler(ProblemError)
    async def _problem(request: Request, error: ProblemError) -> Response:
        return _answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return _answer(request, invalid(error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ProblemError):  # raised while FastAPI read the body
            return _answer(request, error.__cause__)
        body = {
            404: ProblemError(ErrorCode.NOT_FOUND, f"There is nothing at {request.url.path[:100]}; see /docs."),
            405: ProblemError(ErrorCode.METHOD_NOT_ALLOWED, f"{request.url.path} does not take {request.method}."),
        }.get(error.status_code, ProblemError(ErrorCode.INVALID_REQUEST, str(error.detail)))
        answer = _answer(request, body)
        if error.headers and "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer


def _answer(request: Request, error: ProblemError) -> Response:
    request.state.code = error.code.value  # for the audit log
    return problem_response(error, request.url.path)


def internal(path: str = "") -> Response:
    """The answer when something of our own broke: no internals."""
    return problem_response(ProblemError(ErrorCode.INTERNAL, "Something of ours broke; see the logs."), path)


_REF = "#/components/schemas/{model}"
_FAILURES = {"4XX": "The request cannot be served; `code` says why.", "5XX": "The service cannot serve it now."}


def describe_errors(app: FastAPI) -> None:
    """Makes `/json` describe problem+json instead of FastAPI's own error bodies."""
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
