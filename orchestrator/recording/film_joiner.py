"""Joins the parts of several encoders into one film without re-encoding: timestamps continue from part to part.

Both tracks of a part begin at 0. The next part begins where the sound of the one before it ends, and silence fills that up to where
its picture ends: players that ignore gaps in the sound stay in step, too. Speech that no part has (an agent is lost) comes between.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from orchestrator.recording.boxes import (
    BadFilm,
    Run,
    Tracks,
    make_fragment,
    read_fragment,
    read_header,
    write_u32,
    write_u64,
)

AAC_FRAME = 1024
"""Samples in each frame of AAC (ISO/IEC 14496-3)."""
SILENCE = bytes.fromhex("00c800802380")
"""A frame of AAC-LC, mono, without sound: an empty spectrum, as hls.js has it (`getSilentFrame`)."""


class JoinState(BaseModel):
    """How far a film has come: ticks of video and audio, fragments, and the tracks of its header, as it is stored."""

    video_end: int = 0
    audio_end: int = 0
    fragments: int = 0
    video: int = 0
    audio: int = 0
    video_scale: int = 0
    audio_scale: int = 0

    @property
    def begun(self) -> bool:
        """It has a header."""
        return self.video_scale > 0

    @property
    def tracks(self) -> Tracks:
        """Those of its header."""
        return Tracks(self.video, self.audio, self.video_scale, self.audio_scale)

    @property
    def seconds(self) -> float:
        """How long the film is."""
        return self.video_end / self.video_scale if self.begun else 0.0


class FilmJoiner:
    """Takes headers and fragments as they come, gives the bytes to append to the film.

    Args:
        state: of a film that goes on; it is kept up to date.

    Attributes:
        part_audio_s: how far the sound of the part under way has come, on the part's own time.
    """

    def __init__(self, state: JoinState | None = None) -> None:
        self.state = state or JoinState()
        self.part_audio_s = 0.0
        self._shift: tuple[int, int] | None = None

    def begin(self, header: bytes) -> bytes:
        """A part begins. Returns the film's header for the first one. Raises BadFilm for one that cannot follow on it."""
        tracks, state = read_header(header), self.state
        self._shift, self.part_audio_s = None, 0.0
        if state.begun:
            if tracks != state.tracks:
                raise BadFilm(f"tracks {tracks}, but those of the film are {state.tracks}")
            return b""
        state.video, state.audio = tracks.video, tracks.audio
        state.video_scale, state.audio_scale = tracks.video_scale, tracks.audio_scale
        return header

    def lose(self) -> None:
        """Fragments of the part are missing: what comes next follows on what is there."""
        self._shift = None

    def add(self, fragment: bytes) -> bytes:
        """A fragment of the part. Raises BadFilm; the film is then as it was."""
        state, written = self.state, bytearray(fragment)
        sequence, runs = read_fragment(written)
        if not state.begun:
            raise BadFilm("a fragment before any header")
        filling = b""
        if self._shift is None:
            filling = self._follow_on(runs)
        assert self._shift is not None
        shifts = {state.video: self._shift[0], state.audio: self._shift[1]}
        for run in runs:
            at = run.at + shifts[run.track]
            write_u64(written, run.offset, at)
            if run.track == state.video:
                state.video_end = max(state.video_end, at + run.lasts)
            else:
                state.audio_end = max(state.audio_end, at + run.lasts)
                self.part_audio_s = (run.at + run.lasts) / state.audio_scale
        state.fragments += 1
        write_u32(written, sequence, state.fragments)
        return filling + bytes(written)

    def say(self, frames: Sequence[bytes]) -> bytes:
        """Sound after what there is, as frames of AAC, over the last picture; only after a header. The next part follows."""
        state = self.state
        self._shift = None
        state.audio_end = -(-state.audio_end // AAC_FRAME) * AAC_FRAME
        state.fragments += 1
        written = make_fragment(state.fragments, state.audio, state.audio_end, frames, AAC_FRAME)
        state.audio_end += len(frames) * AAC_FRAME
        return written

    def _follow_on(self, runs: list[Run]) -> bytes:
        """Fixes by how much the part's times are shifted. Returns the silence that goes before it."""
        state, first = self.state, {run.track: run.at for run in reversed(runs)}
        if set(first) - {state.video, state.audio}:
            raise BadFilm(f"a fragment of tracks {sorted(first)}")

        def in_audio(ticks: int) -> int:
            return -(-ticks * state.audio_scale // state.video_scale)

        video = first.get(state.video)
        audio = first.get(state.audio, 0 if video is None else in_audio(video) // AAC_FRAME * AAC_FRAME)
        state.audio_end = (
            -(-state.audio_end // AAC_FRAME) * AAC_FRAME
        )  # the last frame of a part may say that it is shorter
        least = in_audio(state.video_end - (video or 0)) + audio if video is not None else 0
        frames = max(0, -(-(least - state.audio_end) // AAC_FRAME)) if state.fragments else 0
        silence = b""
        if frames:
            silence = self.say([SILENCE] * frames)
        shift = state.audio_end - audio
        self._shift = shift * state.video_scale // state.audio_scale, shift
        return silence
