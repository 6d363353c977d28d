"""What the libraries find out anew for every application, settings and request, found out once a run."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from fastapi import routing
from fastapi.dependencies import utils
from pydantic_settings import EnvSettingsSource


def remember() -> None:
    """From now on. Nothing that is shared is changed by who gets it."""
    if importlib.util.find_spec("sniffio") is None:
        sys.modules["sniffio"] = None  # type: ignore[assignment]  # httpcore looks for it three times a request, in every folder
    routing._extract_endpoint_context = _nothing
    _signatures()
    _settings()


def _nothing(_: object) -> routing.EndpointContext:
    """Otherwise file and line, read from the source for the text of an error."""
    return {}


def _signatures() -> None:
    made = utils.get_typed_signature
    known: WeakKeyDictionary[Any, inspect.Signature] = WeakKeyDictionary()

    def get_typed_signature(call: Callable[..., Any]) -> inspect.Signature:
        try:
            found = known.get(call)
        except TypeError:  # it has no hash, or nothing can refer to it weakly
            return made(call)
        if found is None:
            found = known[call] = made(call)
        return found

    utils.get_typed_signature = get_typed_signature


def _settings() -> None:
    """Of a field of settings: which variables it comes from, and whether they hold JSON."""
    for name in ("_field_is_complex", "_extract_field_info"):
        setattr(EnvSettingsSource, name, _once_a_field(getattr(EnvSettingsSource, name)))


def _once_a_field(made: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def found(source: EnvSettingsSource, field: Any, *more: Any, **named: Any) -> Any:
        if named:
            return made(source, field, *more, **named)
        key = (type(source), source.settings_cls, id(field), more, source.env_prefix, source.case_sensitive)
        if key not in known:
            known[key] = field, made(source, field, *more)  # as `field` lives on, no other one gets its address
        answer = known[key][1]
        return list(answer) if isinstance(answer, list) else answer

    return found
