"""What keeps the house plain: a class name means one thing, a module's name is in one package, few handlers catch everything."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from functools import cache
from itertools import chain

import pytest

from tests.architecture.test_imports import PACKAGES, PRODUCT, ROOT

BROAD_SHARE = 0.08
"""Of all handlers. Above it a broad one stands where an error could be named."""
BROAD = {"Exception", "BaseException"}


@cache
def _nodes() -> dict[str, list[ast.AST]]:
    """The nodes of each module of the packages, by its path from the root."""
    modules = [path for path in PRODUCT if path.relative_to(ROOT).parts[0] in PACKAGES]
    return {str(path.relative_to(ROOT)): list(ast.walk(ast.parse(path.read_text("utf-8")))) for path in modules}


def test_a_class_name_means_one_thing() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, nodes in _nodes().items():
        for name in {node.name for node in nodes if isinstance(node, ast.ClassDef)}:
            places[name].append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_a_module_name_is_in_one_package() -> None:
    packages: dict[str, set[str]] = defaultdict(set)
    for path in _nodes():
        package, _, name = path.partition("/")
        packages[name.rpartition("/")[2]].add(package)
    shared = {name for name, found in packages.items() if len(found) > 1}
    assert shared - {"__init__.py", "__main__.py"} == set()


def _is_broad(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or any(
        isinstance(node, ast.Name) and node.id in BROAD for node in ast.walk(handler.type)
    )


def test_few_handlers_catch_everything() -> None:
    handlers = [node for node in chain(*_nodes().values()) if isinstance(node, ast.ExceptHandler)]
    broad = sum(map(_is_broad, handlers))
    assert broad <= BROAD_SHARE * len(handlers), f"{broad} of {len(handlers)}"


WRITERS = {
    "session": {  # fields of `ManagedSession`, and the modules of `orchestrator/session` that assign them
        "owner": {"manager"},
        "order": {"manager"},
        "publisher_mode": {"manager", "journal"},
        "snapshot": {"manager", "session_runner", "session_failover"},
        "snapshot_at": {"manager", "session_runner"},
        "end_reason": {"manager", "session_runner"},
        "base_state": {"model", "session_runner"},
        "live": {"session_runner"},
        "error": {"session_runner"},
        "ended_at": {"session_runner"},
        "lease": {"session_runner", "session_failover"},
        "placed": {"session_failover"},
        "talk": {"session_runner", "journal"},
        "ingress": {"session_runner", "journal"},
    },
    "segment": {  # fields of the agent's `Segment` that others than itself assign, and the modules of `media`
        "not_before": {"pipeline"},
        "microphone": {"pipeline"},
        "origin": {"player"},
        "started": {"segment_queue"},
        "finished": {"segment_queue"},
    },
}
FOLDERS = {"session": "orchestrator/", "segment": "musetalk_agent/"}


def _written(path: str, name: str) -> set[str]:
    """The fields of a variable or attribute called `name` (`session`, `self._session`) that a module assigns."""
    return {
        node.attr
        for node in _nodes()[path]
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and (getattr(node.value, "id", "") == name or getattr(node.value, "attr", "") in (name, f"_{name}"))
    }


@pytest.mark.parametrize("name", WRITERS)
def test_a_field_that_several_modules_read_is_written_where_its_class_says(name: str) -> None:
    written: dict[str, set[str]] = defaultdict(set)
    for path in _nodes():
        if path.startswith(FOLDERS[name]):
            for field in _written(path, name) & set(WRITERS[name]):
                written[field].add(path.rpartition("/")[2].removesuffix(".py"))
    assert written == WRITERS[name]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_handler_that_catches_everything_says_why(package: str) -> None:
    silent = Counter[str]()
    for path, nodes in _nodes().items():
        if not path.startswith(f"{package}/"):
            continue
        lines = (ROOT / path).read_text("utf-8").splitlines()
        for node in nodes:
            if isinstance(node, ast.ExceptHandler) and _is_broad(node) and "#" not in lines[node.lineno - 1]:
                silent[path] += 1
    assert not silent


ROUTES = {"get", "post", "put", "patch", "delete", "websocket"}


def test_what_a_request_calls_is_async() -> None:
    """FastAPI calls an endpoint or a dependency that is not async in a thread: two switches of threads for each request."""
    threaded = []
    for path, nodes in _nodes().items():
        functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}
        asked = {
            node.args[0].id
            for node in nodes
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Depends"
            if node.args and isinstance(node.args[0], ast.Name)
        }
        calls = {
            name: [
                d.func.attr
                for d in node.decorator_list
                if isinstance(d, ast.Call) and isinstance(d.func, ast.Attribute)
            ]
            for name, node in functions.items()
        }
        threaded += [f"{path}: {name}" for name in functions if name in asked or ROUTES & set(calls[name])]
    assert threaded == []
