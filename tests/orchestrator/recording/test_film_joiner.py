"""Parts of several encoders become one film that plays, in step, at any moment while it grows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from orchestrator.recording.boxes import BadFilm, boxes, make_box, read_fragment, read_header
from orchestrator.recording.film_joiner import FilmJoiner, JoinState
from tests.fakes.film_parts import EVERY_S, part, watch


def test_three_parts_are_one_film_in_step() -> None:
    made, joiner = part(), FilmJoiner()
    film = b"".join(piece for _ in range(3) for piece in (joiner.begin(made.header), *map(joiner.add, made.fragments)))
    seen = watch(film)
    assert len(seen.times) == 225 and len(seen.flashes) == len(seen.bursts) == 18
    assert all(earlier < later for earlier, later in pairwise(seen.times))
    assert max(map(abs, seen.skews_ms)) < 1000 / 25
    assert abs(float(np.median(seen.skews_ms))) < 10
    assert joiner.state.seconds == pytest.approx(seen.times[-1] + 0.04, abs=0.02)


def test_a_part_that_breaks_off_is_filled_with_silence_and_the_next_one_is_in_step() -> None:
    made, joiner = part(), FilmJoiner()
    film = joiner.begin(made.header)
    for count in (5, 11, 15, 38):
        film += joiner.begin(made.header) + b"".join(map(joiner.add, made.fragments[:count]))
    seen = watch(film)
    assert seen.skews_ms and max(map(abs, seen.skews_ms)) < 1000 / 25


def test_fragments_that_are_missing_are_left_out_and_what_follows_is_in_step() -> None:
    made, joiner = part(), FilmJoiner()
    film = joiner.begin(made.header) + b"".join(map(joiner.add, made.fragments[:9]))
    joiner.lose()
    film += b"".join(map(joiner.add, made.fragments[25:]))  # up to the next key picture old ones show through
    seen = watch(film)
    late = [skew for skew, flash in zip(seen.skews_ms, seen.flashes, strict=True) if flash > 1.0]
    assert late and max(map(abs, late)) < 1000 / 25
    assert seen.times[-1] < 3.0 - 16 * 0.08 + 0.2


def test_every_beginning_of_a_film_plays() -> None:
    made, joiner = part(), FilmJoiner()
    film, ends = joiner.begin(made.header), []
    for piece in (*made.fragments, *made.fragments[:9]):
        if piece is made.fragments[0]:
            film += joiner.begin(made.header)
        film += joiner.add(piece)
        ends.append(len(film))
    counts = [len(watch(film[:end]).times) for end in ends[::4]]
    assert counts[0] > 0 and all(a < b for a, b in pairwise(counts))


def test_a_film_goes_on_from_what_was_stored_of_it() -> None:
    made, first = part(), FilmJoiner()
    film = first.begin(made.header) + b"".join(map(first.add, made.fragments))
    second = FilmJoiner(JoinState.model_validate_json(first.state.model_dump_json()))
    film += second.begin(made.header) + b"".join(map(second.add, made.fragments))
    assert len(watch(film).bursts) == round(6.0 / EVERY_S)


def test_what_is_no_film_is_refused_and_leaves_the_film_as_it_was() -> None:
    made, joiner = part(), FilmJoiner()
    with pytest.raises(BadFilm, match="before any header"):
        joiner.add(made.fragments[0])
    joiner.begin(made.header)
    joiner.add(made.fragments[0])
    before = joiner.state.model_copy()
    for wrong in (b"", b"moof", made.fragments[1][:-1], made.header, make_box(b"moof", make_box(b"mfhd", bytes(8)))):
        with pytest.raises(BadFilm):
            joiner.add(wrong)
        assert joiner.state == before
    other = made.header.replace((90_000).to_bytes(4, "big"), (12_800).to_bytes(4, "big"))
    with pytest.raises(BadFilm, match="those of the film"):
        joiner.begin(other)
    with pytest.raises(BadFilm, match="without the tracks"):
        read_header(made.header[:28])


def test_the_boxes_of_a_fragment_are_read() -> None:
    fragment = part().fragments[1]
    assert [box.kind for box in boxes(fragment)][:2] == [b"moof", b"mfhd"]
    _, runs = read_fragment(fragment)
    assert {run.track for run in runs} == {1, 2} and all(run.lasts > 0 for run in runs)
