"""The agent's errors: each has its own code, and the page that draws their family has all of them."""

from __future__ import annotations

import pytest

from musetalk_agent import errors
from musetalk_agent.errors import AgentError, AvatarError
from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError

FAMILY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AgentError)]
STATUS = {
    "AvatarNotFound": 404,
    "SessionNotFound": 404,
    "SessionConflict": 409,
    "SessionEnded": 409,
    "PublisherUnavailable": 409,
    "EngineUnavailable": 503,
    "EngineOutOfMemory": 503,
    "EngineFailed": 503,
    "NotReady": 503,
    "AtCapacity": 503,
    "DiskFull": 503,
    "Draining": 503,
    "PublishFailed": 503,
    "RecordingFailed": 503,
    "AgentError": 500,
}
"""Of those that are not the request's own fault."""


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_an_error_travels_under_its_code_with_what_it_was_given(kind: type[AgentError]) -> None:
    error = kind("Nine is too many; seven at most.", field="frames", limit=7, value=9, retry_after_s=3)
    assert isinstance(error, ProblemError) and str(error) == error.detail == "Nine is too many; seven at most."
    assert (error.field, error.limit, error.value, error.retry_after_s) == ("frames", 7, 9, 3)
    problem = Problem.of(error)
    assert problem.code is kind.error_code and problem.status == STATUS.get(kind.__name__, 422)
    assert (problem.field, problem.limit, problem.value) == ("frames", 7, 9)


def test_no_two_kinds_share_a_code_but_for_a_base_and_its_special_case() -> None:
    codes: dict[ErrorCode, set[str]] = {}
    for kind in FAMILY:
        codes.setdefault(kind.error_code, set()).add(kind.__name__)
    shared = {code: names for code, names in codes.items() if len(names) > 1}
    assert shared == {
        ErrorCode.AVATAR_UNDECODABLE: {"AvatarError", "AvatarUndecodable"},
        ErrorCode.ENGINE_UNAVAILABLE: {"EngineUnavailable", "EngineOutOfMemory"},
    }


def test_the_tree_at_the_top_of_the_file_names_each_and_those_of_avatars_in_their_branch() -> None:
    tree = errors.__doc__ or ""
    branch, _, rest = tree.partition("├── EngineUnknown")
    for kind in FAMILY:
        assert kind.__name__ in tree, kind
        if issubclass(kind, AvatarError):
            assert kind.__name__ in branch, kind
    assert "SessionNotFound" in rest and kind.__doc__
