"""Captions in the picture: where and when they stand, what is left alone, and fonts that lack a letter."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import av
import numpy as np
import pytest
from pydantic import ValidationError

from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.renders import RenderFormat, RenderRequest, RenderState
from musetalk_agent.renders import film_captions
from musetalk_agent.renders.film_captions import BurnedCaptions, FilmCaption, font_for
from musetalk_agent.renders.film_parts import STUDIO_601, Colours
from musetalk_agent.renders.job_list import JobsWrong, read_jobs
from musetalk_agent.renders.known_speech import WORDS_FILE

from .test_render_job import Bench, bursts, worked

FPS = 25
HELLO = FilmCaption(("Hello there,", "who is it?"), 1.0, 2.0)
SIZES = [(640, 360), (360, 640), (256, 144)]


def grey(width: int, height: int, alpha: int | None = None) -> VideoFrame:
    planes = np.full(width * height * 3 // 2, 90, np.uint8)
    share = None if alpha is None else np.full((height, width), alpha, np.uint8)
    return VideoFrame(planes, width, height, 3, alpha=share)


def luma(frame: VideoFrame) -> np.ndarray:
    return frame.i420[: frame.width * frame.height].reshape(frame.height, frame.width)


def drawer(*shown: FilmCaption, colours: Colours = STUDIO_601) -> BurnedCaptions:
    return BurnedCaptions(shown, lambda number: number / FPS, colours)


@pytest.mark.parametrize("number", [0, 24, 50, 200])
def test_a_frame_without_a_caption_is_left_as_it_is(number: int) -> None:
    frame = grey(64, 64)
    assert drawer(HELLO).on(frame, number) is frame


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("number", [25, 49])
def test_letters_are_white_with_a_dark_edge_and_stand_at_the_bottom(width: int, height: int, number: int) -> None:
    frame = grey(width, height)
    made = drawer(HELLO).on(frame, number)
    assert (frame.i420 == 90).all(), "the frame itself may be shown elsewhere"
    assert (made.width, made.height, made.idle_index) == (width, height, 3)
    changed = luma(made) != 90
    rows = np.flatnonzero(changed.any(1))
    assert rows[0] > height / 2 and rows[-1] < height * 0.95
    assert luma(made).max() >= 200 and luma(made).min() <= 30
    chroma = made.i420[width * height :].reshape(2, height // 2, width // 2)
    assert (chroma[:, : rows[0] // 2 - 1] == 90).all() and chroma.max() > 110, "letters have no colour"


def test_a_line_that_is_too_long_for_the_picture_gets_smaller_letters() -> None:
    line = "forty-two letters are what one line has ok"
    made = drawer(FilmCaption((line,), 0.0, 1.0)).on(grey(360, 640), 0)
    columns = np.flatnonzero((luma(made) != 90).any(0))
    assert 360 * 0.02 <= columns[0] < 60 and 300 < columns[-1] <= 360 * 0.98


def test_full_range_has_its_own_white() -> None:
    full = Colours(1, 2, 1, 1)
    shown = FilmCaption(("MMM",), 0.0, 1.0)
    bright, usual = (drawer(shown, colours=c).on(grey(640, 360), 0) for c in (full, STUDIO_601))
    assert (luma(bright).max(), luma(usual).max()) == (255, 235)


def test_letters_over_nothing_are_seen_too() -> None:
    frame = grey(640, 360, alpha=0)
    made = drawer(HELLO).on(frame, 30)
    assert made.alpha is not None and made.alpha.max() == 255 and not made.alpha[:180].any()
    assert frame.alpha is not None and not frame.alpha.any()


def test_a_letter_that_no_font_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film_captions, "_FONTS", ())
    assert font_for({"a", "?", " "}).getname()
    with pytest.raises(ProblemError, match=r"'漢'.*CAPTION_FONT") as refused:
        drawer(FilmCaption(("a 漢",), 0.0, 1.0))
    assert refused.value.code is ErrorCode.CAPTIONS_UNAVAILABLE


def test_a_font_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "font.ttf").write_text("no font")
    with pytest.raises(ProblemError, match=r"font\.ttf is no font"):
        font_for({"a"}, tmp_path / "font.ttf")


# --- renders


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worked(tmp_path, "pattern") as made:
        yield made


def changed(film: Path) -> list[bool]:
    """For each frame, whether its lower part differs from that of a film without captions, which lies beside it."""
    pictures = []
    for path in (film, film.with_name("plain.mp4")):
        with av.open(str(path)) as container:
            pictures.append([frame.to_ndarray(format="gray")[40:] for frame in container.decode(video=0)])
    burned, plain = pictures
    assert len(burned) == len(plain)
    return [bool((np.abs(a.astype(int) - b) > 60).any()) for a, b in zip(burned, plain, strict=True)]


async def test_the_words_of_a_text_are_in_the_picture_while_they_are_shown(bench: Bench, tmp_path: Path) -> None:
    words = [["Hello ", 1.0, 1.4], ["there. ", 1.4, 2.5], ["Bye. ", 4.5, 5.5]]
    films = []
    for burn in (True, False):
        render_id = bench.order(bursts(6), burn_captions=burn)
        (bench.folder.path(render_id) / WORDS_FILE).write_text(json.dumps(words))
        end = await bench.make(render_id)
        assert end is not None and end.state is RenderState.DONE and end.captions
        films.append(bench.folder.result(render_id, RenderFormat.MP4))
    films[1].rename(films[0].with_name("plain.mp4"))
    shown = changed(films[0])
    assert [k for k, is_shown in enumerate(shown) if is_shown] == [*range(25, 63), *range(113, 138)], "over two parts"


async def test_a_render_whose_words_are_not_known_fails_in_place_of_a_film_without_them(bench: Bench) -> None:
    end = await bench.make(bench.order(bursts(1), burn_captions=True))
    assert end is not None and end.error is not None and end.error.code == "captions_unavailable"
    assert "transcript" in end.error.detail


async def test_a_letter_without_a_font_fails_before_a_frame_is_made(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film_captions, "_FONTS", ())
    render_id = bench.order(bursts(1), burn_captions=True)
    (bench.folder.path(render_id) / WORDS_FILE).write_text(json.dumps([["漢字", 0.0, 1.0]]))
    end = await bench.make(render_id)
    assert end is not None and end.error is not None and end.error.code == "captions_unavailable"
    assert not bench.tickets and bench.folder.plan(render_id) is None


def test_words_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="burn_captions"):
        RenderRequest(audio_url="https://example.com/a.wav", engine="pattern", burn_captions=True)
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text("- {avatar: a.mp4, audio: a.wav, output: a.mp4, burn_captions: true}")
    with pytest.raises(JobsWrong, match=r"a\.mp4: burn_captions"):
        read_jobs(jobs)
