"""What a report adds up, what its picture shows, and what a recording becomes: at their edges."""

from __future__ import annotations

import asyncio
import wave
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from musetalk_tools.loadtest.chart import PngCanvas, SvgCanvas, draw
from musetalk_tools.loadtest.deployment import Deployment
from musetalk_tools.loadtest.load_session import LoadSession, Shared
from musetalk_tools.loadtest.plan import Plan
from musetalk_tools.loadtest.report import Losses, Point, losses, machine, report_of, reported_plan
from musetalk_tools.loadtest.speech_source import RATE, SpeechError, recording, tones
from musetalk_tools.loadtest.viewer_messages import Left, Seen
from musetalk_tools.loadtest.viewer_pool import ViewerPool
from tests.musetalk_tools.loadtest.test_command import _report

SVG = "{http://www.w3.org/2000/svg}"


async def session(frames: int = 0, pattern: bool = False, **left: Any) -> LoadSession:
    plan = Plan("http://x", 1, 1.0)
    shared = Shared(plan, tones(), cast(Deployment, None), cast(ViewerPool, None), asyncio.Event())
    made = LoadSession(shared, 0)
    made.sight.pattern = pattern
    made.sight.take(Seen(name="0", frames=[10 + n / 25 for n in range(frames)]))
    made.left = Left(name="0", **left)
    return made


async def test_losses_are_added_up_over_all_sessions() -> None:
    first = await session(frames=51, packets_received=1000, packets_lost=3, freezes=1, concealed_s=0.1)
    second = await session(frames=26, packets_received=500, packets_lost=2, concealed_s=0.2)
    second.sight.take(Seen(name="0", frames=[12.0]))  # 24 never came
    assert losses([first, second]) == Losses(
        frames=78, frames_missing=24, packets=1500, packets_lost=5, freezes=1, concealed_s=0.3
    )
    assert losses([]) == Losses()


async def test_marks_that_nobody_looked_for_are_none_and_those_that_were_not_seen_are_zero() -> None:
    assert losses([await session()]).marks_shown is None
    assert losses([await session(), await session(pattern=True)]).marks_shown == 0


async def test_a_row_is_rounded_to_milliseconds_and_empty_where_nothing_was() -> None:
    made = await session()
    row = report_of(made)
    assert (row.session_id, row.start_s, row.first_picture_s, row.error, row.frames) == (None, None, None, None, 0)
    made.session_id, made.start_s, made.first_picture_s, made.error = "ses_1", 0.12345, 1.0006, "timeout"
    row = report_of(made)
    assert (row.session_id, row.start_s, row.first_picture_s, row.error) == ("ses_1", 0.123, 1.001, "timeout")


@pytest.mark.parametrize(("cpu_s", "seconds", "cores"), [(30.0, 60.0, 0.5), (0.0, 10.0, 0.0), (1.0, 0.0, 1000.0)])
def test_the_generators_own_work_is_reported_in_cores(cpu_s: float, seconds: float, cores: float) -> None:
    reported = machine(cpu_s, seconds)
    assert reported.viewer_cores == cores and reported.cores >= 1 and "Python 3" in reported.system


def test_a_plan_is_reported_as_it_was_given() -> None:
    plan = Plan("https://x", 4, 0.5, ramp_s=1.5, speak_share=0.25, engine="warp", run_id="r")
    reported = reported_plan(plan)
    assert (reported.url, reported.run_id, reported.sessions, reported.seconds, reported.ramp_s) == (
        "https://x",
        "r",
        4,
        31.5,
        1.5,
    )


# --- the picture


def drawn(tmp_path: Path, **fields: Any) -> ElementTree.Element:
    path = tmp_path / "report.svg"
    draw(_report().model_copy(update=fields), path)
    return ElementTree.parse(path).getroot()


def words(root: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("held", "cut_short", "reported"),
    [
        (True, False, "within the bars"),
        (False, False, "NOT within the bars"),
        (True, True, "within the bars, cut short"),
    ],
)
def test_its_head_says_how_it_ended(held: bool, cut_short: bool, reported: str, tmp_path: Path) -> None:
    assert reported in words(drawn(tmp_path, held=held, cut_short=cut_short))


@pytest.mark.parametrize("points", [0, 1, 200])
def test_everything_lies_inside_however_long_the_run_was(points: int, tmp_path: Path) -> None:
    timeline = [
        Point(at_s=2.0 * n, sessions=3, fps_low=None if n % 2 else 60.0, fps_mean=90.0, gap_ms=1.0, errors=n % 2)
        for n in range(1, points + 1)
    ]
    root = drawn(tmp_path, timeline=timeline)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for rect in root.iter(f"{SVG}rect"):
        x, y = float(rect.get("x", "0")), float(rect.get("y", "0"))
        assert x >= 0 and y >= 0 and float(rect.attrib["width"]) >= 0 and float(rect.attrib["height"]) >= 0
        assert x + float(rect.attrib["width"]) <= width + 3 and y + float(rect.attrib["height"]) <= height
    for line in root.iter(f"{SVG}polyline"):
        corners = [tuple(map(float, each.split(","))) for each in line.attrib["points"].split()]
        assert all(0 <= x <= width + 1 and 0 <= y <= height for x, y in corners)


def test_a_run_in_which_nothing_was_measured_has_a_picture_too(tmp_path: Path) -> None:
    root = drawn(tmp_path, figures={}, timeline=[], bars=[], errors={})
    assert "3 sessions for 30 s" in words(root)
    assert not any("NOT held" in each for each in words(root))


def test_a_format_that_is_none_is_a_key_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        draw(_report(), tmp_path / "report.gif")


def test_what_is_written_in_svg_is_text_and_no_markup(tmp_path: Path) -> None:
    canvas = SvgCanvas(10, 10)
    canvas.text(1, 2, "<b>&\"'", 12, "#000000")
    canvas.save(tmp_path / "a.svg")
    assert words(ElementTree.parse(tmp_path / "a.svg").getroot()) == ["<b>&\"'"]


def test_a_rectangle_of_the_png_is_where_and_of_the_colour_that_was_asked(tmp_path: Path) -> None:
    canvas = PngCanvas(20, 10)
    canvas.rect(5, 2, 10, 4, "#c2571a")
    canvas.save(tmp_path / "a.png")
    pixels = cv2.imread(str(tmp_path / "a.png"))
    assert pixels is not None and pixels.shape == (20, 40, 3), "twice as large, for sharp letters"
    painted = (pixels == (0x1A, 0x57, 0xC2)).all(axis=2)
    assert painted[4:12, 10:30].all() and painted.sum() == 8 * 20 and (pixels[~painted] == 255).all()


# --- a recording


def wav(path: Path, pcm: np.ndarray, rate: int = RATE, channels: int = 1, width: int = 2) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(pcm.astype("<i2" if width == 2 else "u1").tobytes())
    return path


@pytest.mark.parametrize(
    ("rate", "width", "reported"),
    [(7999, 2, "not 16-bit at 7999 Hz"), (48_001, 2, "16-bit at 48001"), (16_000, 1, "not 8-bit at 16000 Hz")],
)
def test_what_is_no_speech_is_refused_by_what_it_is(rate: int, width: int, reported: str, tmp_path: Path) -> None:
    with pytest.raises(SpeechError, match=reported):
        recording(wav(tmp_path / "a.wav", np.full(rate, 100), rate, width=width))


@pytest.mark.parametrize(
    ("seconds", "parts"), [(1.0, [1.0]), (4.0, [4.0]), (5.9, [4.0]), (6.0, [4.0, 2.0]), (12.0, [4.0, 4.0, 4.0])]
)
def test_a_rest_of_less_than_half_an_utterance_is_left_out(seconds: float, parts: list[float], tmp_path: Path) -> None:
    speech = recording(wav(tmp_path / "a.wav", np.full(round(seconds * RATE), 5000)))
    assert [each.seconds for each in speech.utterances] == parts
    assert all(each.marks == (0,) for each in speech.utterances) and speech.interrupted == speech.utterances


def test_channels_are_mixed_and_the_rate_changed_without_moving_the_mark(tmp_path: Path) -> None:
    left = np.where(np.arange(48_000) < 24_000, 0, 8000)
    stereo = np.stack([left, np.zeros_like(left)], axis=1)
    (one,) = recording(wav(tmp_path / "a.wav", stereo, 48_000, channels=2)).utterances
    assert len(one.pcm) == RATE and abs(one.marks[0] - RATE // 2) <= 1
    assert one.pcm.max() == 4000, "the mean of both"


def test_silence_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpeechError, match="it is silent: no sample above 2000"):
        recording(wav(tmp_path / "a.wav", np.full(RATE, 2000)))
    with pytest.raises(SpeechError, match="give 16-bit PCM"):
        recording(wav(tmp_path / "b.wav", np.zeros(0)))
