"""A session's deadlines under any order of signs of use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.session.model import SessionOptions
from orchestrator.session.session_runner import Deadlines

_time = st.floats(0, 400, allow_nan=False)
_grace = st.floats(1, 100)


@given(
    idle=_grace,
    viewers=_grace,
    speaker=_grace,
    expires=st.floats(1, 500),
    counts=st.tuples(st.booleans(), st.booleans()),
    notes=st.lists(st.tuples(st.sampled_from(["audio", "viewers", "nobody", "speaker"]), _time), max_size=20),
    now=st.floats(0, 600),
)
def test_it_ends_at_its_first_deadline_with_that_reason_and_no_note_brings_an_end_nearer(
    idle: float,
    viewers: float,
    speaker: float,
    expires: float,
    counts: tuple[bool, bool],
    notes: list[tuple[str, float]],
    now: float,
) -> None:
    options = SessionOptions(idle_ttl_s=idle, viewer_grace_s=viewers, speaker_grace_s=speaker)
    life = Deadlines(options, 0.0, expires, counts_viewers=counts[0], counts_speaker=counts[1])
    last = {"audio": 0.0, "viewers": 0.0, "speaker": 0.0}
    for kind, at in notes:
        before = life.next_at()
        if kind == "audio":
            life.note_audio(at)
        elif kind == "speaker":
            life.note_speaker(at)
            last["audio"] = max(last["audio"], at)
        else:
            life.note_viewers(int(kind == "viewers"), at)
        if kind in last:
            last[kind] = max(last[kind], at)
        assert life.next_at() >= before
    deadlines = {"expired": expires, "idle": last["audio"] + idle}
    deadlines |= {"no_viewers": last["viewers"] + viewers} if counts[0] else {}
    deadlines |= {"speaker_left": last["speaker"] + speaker} if counts[1] else {}
    assert life.next_at() == min(deadlines.values())
    reason = life.over(now)
    assert (reason is not None) == (now >= life.next_at())
    assert reason is None or deadlines[reason] == min(deadlines.values())
