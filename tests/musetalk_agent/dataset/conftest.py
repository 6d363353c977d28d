"""The film of the demo avatar that the judge's tests make."""

from tests.musetalk_agent.judge.conftest import good, judge

__all__ = ["good", "judge"]
