"""A loop that fails is started again, later each time, until it has held for a while; what it raises is counted and logged."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.protocol.retries import run_restarted


class Stand:
    """A loop on the test's own time: each run lasts as long as it is said, and fails, but for the last."""

    def __init__(self, runs: list[float]) -> None:
        self.now, self.lasts = 500.0, list(runs)
        self.slept: list[float] = []
        self.begun = self.counted = 0

    async def loop(self) -> None:
        self.begun += 1
        if not self.lasts:
            return
        self.now += self.lasts.pop(0)
        raise OSError("broken")

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def count(self) -> None:
        self.counted += 1

    async def run(self, *, first_s: float = 1.0, last_s: float = 8.0, settled_s: float = 30.0) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)
            await run_restarted(
                "a loop", self.loop, self.count, first_s=first_s, last_s=last_s, settled_s=settled_s, sleep=self.sleep
            )


@pytest.mark.parametrize(
    ("runs", "waits"),
    [
        ([], []),
        ([0.0], [1]),
        ([0.0] * 6, [1, 2, 4, 8, 8, 8]),
        ([0, 0, 0, 31, 0, 0], [1, 2, 4, 1, 2, 4]),
        ([0, 0, 30, 0], [1, 2, 4, 8]),  # just not long enough
        ([100, 100, 100], [1, 1, 1]),
    ],
)
async def test_the_waits_double_up_to_the_longest_and_begin_again_after_a_run_that_held(
    runs: list[float], waits: list[float]
) -> None:
    stand = Stand(runs)
    await stand.run()
    assert stand.slept == waits and stand.begun == len(runs) + 1 and stand.counted == len(runs)


@given(st.lists(st.floats(0, 100), max_size=20), st.floats(0.1, 5), st.floats(1, 20), st.floats(0, 60))
async def test_no_wait_is_shorter_than_the_first_or_longer_than_the_longest(
    runs: list[float], first_s: float, more: float, settled_s: float
) -> None:
    stand = Stand(runs)
    await stand.run(first_s=first_s, last_s=first_s * more, settled_s=settled_s)
    assert all(first_s <= wait <= first_s * more * (1 + 1e-12) for wait in stand.slept)
    assert len(stand.slept) == stand.counted == len(runs)
    for before, wait, lasted in zip(stand.slept, stand.slept[1:], runs[1:], strict=False):
        assert wait == first_s or (lasted <= settled_s + 1e-9 and wait == min(first_s * more, 2 * before))


async def test_each_failure_is_logged_with_its_loop_and_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        await Stand([0.0, 0.0]).run()
    records = [record for record in caplog.records if record.name.endswith("retries")]
    assert [(vars(one)["loop"], vars(one)["restart_in_s"]) for one in records] == [("a loop", 1.0), ("a loop", 2.0)]
    assert all(one.exc_info is not None and isinstance(one.exc_info[1], OSError) for one in records)


@pytest.mark.parametrize("where", ["loop", "sleep"])
async def test_cancelling_ends_it_while_it_runs_and_while_it_waits(where: str) -> None:
    reached, counted = asyncio.Event(), 0

    async def hang(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    async def fail() -> None:
        raise ValueError

    def count() -> None:
        nonlocal counted
        counted += 1

    task = asyncio.create_task(
        run_restarted("x", hang if where == "loop" else fail, count, first_s=1, last_s=2, settled_s=3, sleep=hang)
    )
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counted == (where == "sleep"), "being cancelled is no failure"


async def test_a_process_that_ends_is_not_held_up() -> None:
    """What is no `Exception` is not for a loop to survive."""

    class Ends(BaseException):
        pass

    async def loop() -> None:
        raise Ends

    with pytest.raises(Ends):
        await run_restarted("x", loop, lambda: None, first_s=1, last_s=1, settled_s=1, sleep=asyncio.sleep)
