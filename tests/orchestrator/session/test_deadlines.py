from __future__ import annotations

import pytest

from orchestrator.session.model import SessionOptions
from orchestrator.session.session_runner import Deadlines

OPTIONS = SessionOptions(idle_ttl_s=100, viewer_grace_s=30)


@pytest.mark.parametrize(
    ("audio_at", "viewers", "now", "reason"),
    [
        (None, [], 29.9, None),
        (None, [], 30, "no_viewers"),
        (None, [(1, 25)], 54.9, None),
        (None, [(1, 25), (0, 40)], 55, "no_viewers"),
        (None, [(1, 95)], 99.9, None),
        (None, [(1, 95)], 100, "idle"),
        (90, [(1, 185)], 189.9, None),
        (90, [(1, 185)], 190, "idle"),
        (495, [(2, 499)], 499.9, None),
        (495, [(2, 499)], 500, "expired"),
    ],
)
def test_a_session_ends_when_it_has_outlived_its_use(
    audio_at: float | None, viewers: list[tuple[int, float]], now: float, reason: str | None
) -> None:
    life = Deadlines(OPTIONS, begun_at=0, expires_at=500)
    if audio_at is not None:
        life.note_audio(audio_at)
    for count, at in viewers:
        life.note_viewers(count, at)
    assert life.over(now) == reason
    assert (life.next_at() <= now) == (reason is not None)


@pytest.mark.parametrize(
    ("there_until", "now", "reason"),
    [(None, 19.9, None), (None, 20, "speaker_left"), (300, 319.9, None), (300, 320, "speaker_left")],
)
def test_one_who_speaks_through_the_room_keeps_the_session_alive(
    there_until: float | None, now: float, reason: str | None
) -> None:
    options = SessionOptions(idle_ttl_s=100, speaker_grace_s=20)
    life = Deadlines(options, begun_at=0, expires_at=500, counts_viewers=False, counts_speaker=True)
    if there_until is not None:
        life.note_speaker(there_until)
    assert life.over(now) == reason
    assert (life.next_at() <= now) == (reason is not None)


def test_one_whose_microphone_is_said_may_come_as_late_as_audio_may() -> None:
    options = SessionOptions(idle_ttl_s=100, speaker_grace_s=20)
    life = Deadlines(
        options, begun_at=0, expires_at=500, counts_viewers=False, counts_speaker=True, awaits_speaker=True
    )
    assert (life.over(99), life.next_at(), life.over(100)) == (None, 100, "idle")
    life.note_speaker(90)
    assert (life.over(109), life.over(110)) == (None, "speaker_left")


def test_viewers_do_not_count_where_no_room_is_joined() -> None:
    life = Deadlines(OPTIONS, begun_at=0, expires_at=500, counts_viewers=False)
    assert life.over(99) is None and life.next_at() == 100


def test_the_reason_is_the_deadline_that_passed_first_however_late_it_is_looked_at() -> None:
    options = SessionOptions(idle_ttl_s=10, viewer_grace_s=8, speaker_grace_s=6)
    life = Deadlines(options, begun_at=0, expires_at=12, counts_speaker=True)
    assert life.over(100) == "speaker_left"
    life.note_speaker(5)
    assert life.over(100) == "no_viewers"
    life.note_viewers(1, 5)
    assert life.over(100) == "speaker_left"
    life.note_speaker(50)
    life.note_viewers(1, 50)
    assert life.over(100) == "expired"
