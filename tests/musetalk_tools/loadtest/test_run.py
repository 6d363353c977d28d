"""A whole run on virtual time: who starts when, what the report says, and that nothing is left running however it ends."""

from __future__ import annotations

import asyncio
import json
from typing import cast

import pytest

from musetalk_tools.loadtest.deployment import CallError, Deployment
from musetalk_tools.loadtest.plan import Plan
from musetalk_tools.loadtest.report import LoadReport
from musetalk_tools.loadtest.run import LoadRun
from musetalk_tools.loadtest.speech_source import tones
from tests.musetalk_tools.loadtest.world import World, inhabit
from tests.virtual_loop import virtual_time, virtually


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return inhabit(World(), monkeypatch)


Beat = tuple[float, int, int]


def run_of(
    world: World, bars: dict[str, float] | None = None, beats: list[Beat] | None = None, **plan: object
) -> LoadRun:
    fields = {"url": "http://service", "sessions": 2, "minutes": 0.5, "engine": "pattern", "speak_share": 1.0, **plan}
    beat = (beats if beats is not None else []).append
    return LoadRun(
        Plan(**fields),  # type: ignore[arg-type]  # a table of fields
        tones(),
        cast(Deployment, world),
        bars or {},
        lambda gone, running, errors: beat((gone, running, errors)),
    )


@virtually
async def test_a_run_tells_what_it_measured_and_leaves_nothing(world: World) -> None:
    bars = {"max-p95-start": 1.0, "max-p95-skew": 40.0, "min-p5-fps": 24.0, "max-p95-interrupt": 100.0, "max-move": 5.0}
    report = await run_of(world, bars).run()
    assert (report.sessions.wanted, report.sessions.started, report.sessions.failed) == (2, 2, 0)
    assert report.seconds == 30.0 and not report.cut_short and report.errors == {}
    figures = report.figures
    assert set(figures) == {
        *("start_s", "first_picture_s", "fps", "gap_ms", "sound_ms", "picture_ms", "skew_ms", "skew_abs_ms"),
        "interrupt_ms",
    }
    assert figures["start_s"].count == 2 and figures["start_s"].p95 == 0.8
    assert figures["fps"].p5 == figures["fps"].p95 == 25.0
    assert figures["interrupt_ms"].p95 == 150.0
    assert {bar.option: bar.held for bar in report.bars} == {
        "max-failed": True,
        "max-p95-start": True,
        "max-p95-skew": True,
        "max-p95-interrupt": False,
        "max-move": True,
        "min-p5-fps": True,
    }
    assert not report.held, "one bar is not"
    lost = report.losses
    assert lost.marks_said == lost.marks_heard == lost.marks_shown and lost.marks_said >= 40
    assert (lost.packets, lost.packets_lost, lost.freezes, lost.frames_missing) == (2000, 6, 2, 0)
    assert report.happened.interrupts >= 4 and report.happened.utterances >= 2 * report.happened.interrupts
    assert [row.session_id for row in report.each] == ["ses_0", "ses_1"]
    assert [row.first_picture_s for row in report.each] == [1.1, 1.1]
    assert not world.shows and {each["state"] for each in world.sessions.values()} == {"stopped"}
    assert LoadReport.model_validate_json(report.model_dump_json()) == report


@virtually
async def test_sessions_start_over_the_ramp_and_the_timeline_counts_them(world: World) -> None:
    beats = list[Beat]()
    report = await run_of(world, beats=beats, sessions=4, ramp_s=8.0, minutes=0.2).run()
    assert [body["room"].rpartition("-")[2] for body in world.bodies] == ["0", "1", "2", "3"]
    assert report.seconds == 20.0 and report.plan.ramp_s == 8.0
    # one more every two seconds, each active 0.8 s after its turn
    assert [point.sessions for point in report.timeline] == [1, 2, 3, 4, 4, 4, 4, 4, 4]
    assert [point.at_s for point in report.timeline] == [2.0 * n for n in range(1, 10)]
    assert all(point.fps_mean is None or 0 < point.fps_mean <= 25.01 for point in report.timeline)
    assert beats[0][1] == 0 and max(running for _, running, _ in beats) == 4
    gone = [at for at, _, _ in beats]
    assert gone == sorted(gone) and len(gone) == 80, "four times a second"


@virtually
async def test_every_start_that_fails_is_counted_and_ends_the_run_early(world: World) -> None:
    world.errors["start"] = CallError("at_capacity", "All 2 agents are full.")
    report = await run_of(world, {"max-failed": 1}, sessions=3, minutes=10.0).run()
    assert report.seconds < 1.0, "nothing is left to look at"
    assert (report.sessions.started, report.sessions.failed, report.held) == (0, 3, False)
    assert report.errors == {"at_capacity": 3}
    assert [(row.error, row.detail, row.start_s) for row in report.each] == [
        ("at_capacity", "All 2 agents are full.", None)
    ] * 3
    assert report.figures == {} and not report.cut_short


@virtually
async def test_one_that_fails_is_within_a_bar_that_allows_one(world: World) -> None:
    run = run_of(world, {"max-failed": 1}, sessions=2)
    task = asyncio.create_task(run.run())
    await asyncio.sleep(10.0)
    world.lose_viewer("1")
    report = await task
    assert report.held and report.sessions.failed == 1 and report.errors == {"viewer_lost": 1}
    assert [point.errors for point in report.timeline].count(1) == 1, "in the window in which it happened"
    assert [point.sessions for point in report.timeline][-1] == 1


@virtually
async def test_stop_ends_it_early_with_what_was_measured(world: World) -> None:
    run = run_of(world, minutes=60.0)
    task = asyncio.create_task(run.run())
    await asyncio.sleep(20.0)
    run.stop()
    run.stop()
    report = await task
    assert report.cut_short and report.seconds == pytest.approx(20.0, abs=0.3)
    assert report.figures["sound_ms"].count > 10
    assert {each["state"] for each in world.sessions.values()} == {"stopped"} and not world.shows


@virtually
async def test_a_run_that_is_cancelled_stops_its_sessions_first(world: World) -> None:
    task = asyncio.create_task(run_of(world, minutes=60.0).run())
    await asyncio.sleep(20.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(10.0)  # what it shields goes on for a moment
    assert {each["state"] for each in world.sessions.values()} == {"stopped"} and "close" in world.calls


@virtually
async def test_a_start_whose_answer_nobody_waited_for_is_swept_up(world: World) -> None:
    world.start_s = 30.0
    run = run_of(world, sessions=1, minutes=60.0)
    task = asyncio.create_task(run.run())
    await asyncio.sleep(5.0)
    run.stop()
    report = await task
    assert (report.sessions.started, report.sessions.failed) == (0, 0)
    assert world.sessions["ses_0"]["state"] == "stopped", "found by its room"


@virtually
async def test_one_that_appears_only_after_the_first_sweep_is_found_by_the_next(world: World) -> None:
    world.start_s = 30.0
    run = run_of(world, sessions=1, minutes=60.0)
    task = asyncio.create_task(run.run())
    await asyncio.sleep(5.0)
    late = world.sessions.pop("ses_0")  # its service has not got as far as to list it
    run.stop()
    asyncio.get_running_loop().call_later(0.5, world.sessions.__setitem__, "ses_0", late)
    await task
    assert late["state"] == "stopped"


@virtually
async def test_sessions_that_stay_are_swept_four_times_and_then_left(world: World) -> None:
    world.errors["stop"] = CallError("agent_unavailable", "gone")
    report = await run_of(world, sessions=1, minutes=0.1).run()
    assert report.errors == {"agent_unavailable": 1 + 4}, "its own stop, and four sweeps"


@pytest.mark.parametrize("name", ["running", "token"])
def test_a_deployment_that_cannot_be_spoken_to(name: str, world: World) -> None:
    """Before anything was started that is the run's end; after that it is a session's."""
    world.errors[name] = CallError("unauthorized", "no key")
    with virtual_time() as loop:
        if name == "running":
            with pytest.raises(CallError, match="no key"):
                loop.run_until_complete(run_of(world).run())
            assert world.calls == ["running"]
        else:
            report = loop.run_until_complete(run_of(world).run())
            assert report.errors == {"unauthorized": 2} and report.sessions.failed == 2


@virtually
async def test_the_services_own_figures_are_reported_of_this_runs_sessions_only(world: World) -> None:
    world.metrics_text = "# TYPE avatar_session_starts counter\navatar_session_starts_total 5.0\n"
    statistics = [{"spoken": 100, "dropped": 1, "lip_latency_p95_ms": 80}, {"spoken": 50, "lip_latency_p95_ms": 120}]
    diagnosis = {"code": "ok"}
    world.debugged["sessions"] = [
        {"session_id": "ses_0", "statistics": statistics[0], "diagnosis": diagnosis},
        {"session_id": "ses_1", "statistics": statistics[1], "diagnosis": diagnosis},
        {"session_id": "ses_of_another", "statistics": {"spoken": 10_000}, "diagnosis": diagnosis},
    ]
    task = asyncio.create_task(run_of(world).run())
    await asyncio.sleep(10.0)
    world.metrics_text = world.metrics_text.replace("5.0", "7.0")
    services = (await task).services
    assert services.orchestrator == {"avatar_session_starts_total": 2.0}
    assert (services.sessions_seen, services.diagnoses, services.device) == (2, {"ok": 2}, "cpu")
    assert (services.agents["spoken"], services.agents["dropped"]) == (150, 1)
    assert services.agents["lip_latency_p95_ms"] == 120, "the worst of them"


@virtually
async def test_a_key_that_may_not_see_them_is_reported_in_a_note(world: World) -> None:
    world.errors |= {"metrics": CallError("forbidden", "operators only"), "debug": CallError("forbidden", "no")}
    report = await run_of(world, minutes=0.1).run()
    assert report.services.note == "forbidden: no" and report.services.orchestrator == {}
    assert report.sessions.failed == 0 and report.errors == {}


@virtually
async def test_the_report_holds_no_key_and_has_the_form_that_is_documented(world: World) -> None:
    report = json.loads((await run_of(world, minutes=0.1).run()).model_dump_json())
    assert (report["report"], report["version"]) == ("musetalk-loadtest", 1)
    assert report["begun_at"].endswith("Z") and report["machine"]["cores"] >= 1
    assert set(report) >= {"plan", "machine", "sessions", "figures", "losses", "happened", "timeline", "each"}
