"""What FastAPI reads from an endpoint's signature, read once a run: most applications of the tests have the same endpoints."""

from __future__ import annotations

from copy import copy
from typing import Any

import fastapi.routing
from fastapi.dependencies import utils
from fastapi.dependencies.models import Dependant

_LISTS = ("path_params", "query_params", "header_params", "cookie_params", "body_params", "dependencies")
_known: dict[tuple[Any, ...], Dependant] = {}


def remember() -> None:
    """From now on a function of a module, or a method, is described once for each path. Functions within functions are described
    anew: they come and go with their application."""
    describe = utils.get_dependant

    def get_dependant(**asked: Any) -> Dependant:
        call = asked["call"]
        function = getattr(call, "__func__", call)
        if "<locals>" in getattr(function, "__qualname__", "<locals>"):  # an object that is called has no name either
            return describe(**asked)
        rest = ((name, repr(value)) for name, value in sorted(asked.items()) if name != "call")
        key = (function, getattr(call, "__self__", None) is None, *rest)
        if (known := _known.get(key)) is None:
            known = _known[key] = _copy(describe(**asked))
            known.call = function
        mine = _copy(known)
        mine.call = call
        return mine

    utils.get_dependant = get_dependant
    fastapi.routing.get_dependant = get_dependant  # type: ignore[attr-defined]  # it is imported there, not exported


def _copy(dependant: Dependant) -> Dependant:
    """A route adds dependencies of its own to the lists."""
    mine = copy(dependant)
    for name in _LISTS:
        setattr(mine, name, list(getattr(dependant, name)))
    return mine
