"""Validators of FastAPI's fields, made once a run: a test that starts an application makes some 120, most often the same ones."""

from __future__ import annotations

from typing import Any

from fastapi._compat import v2

_known: dict[tuple[Any, ...], tuple[Any, Any]] = {}


def remember() -> None:
    """From now on every field that is described as an earlier one shares its `TypeAdapter`, which is never changed."""
    made = v2.ModelField.__post_init__

    def post_init(field: v2.ModelField) -> None:
        about = field.field_info
        key = (id(about.annotation), repr(about), repr(field.config))
        if (known := _known.get(key)) is None:
            made(field)
            _known[key] = about, field._type_adapter  # as `about` lives on, no other object gets an address in its repr
        else:
            field._type_adapter = known[1]

    v2.ModelField.__post_init__ = post_init
