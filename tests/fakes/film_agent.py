"""The films of the fake agent: logs as the real one has them, which grow when a test says so."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from musetalk_agent.protocol.http import (
    FILM_SPOKEN,
    AgentRecordingRequest,
    FilmEntry,
    FilmOptions,
    FilmPart,
    FilmPosition,
    RecordingState,
)
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.publishers.film.fragment_log import FragmentLog
from musetalk_agent.service.film_routes import answer
from tests.fakes.film_parts import part


class FakeFilms:
    """`asked` are the options of each part that was begun; `refuses` is what a request to record is answered with."""

    def __init__(self) -> None:
        self.logs: dict[str, FragmentLog] = {}
        self.asked: list[FilmOptions] = []
        self.refuses: ProblemError | None = None
        self._next = 0

    def add_to(self, app: FastAPI) -> None:
        app.add_api_route("/session/{session_id}/recording", self._record, methods=["POST"])
        app.add_api_route("/session/{session_id}/recording", self._entries, methods=["GET"], response_model=None)

    def begin(self, session_id: str, options: FilmOptions) -> None:
        """A part begins."""
        self.asked.append(options)
        self._next = 0
        log = self.logs.setdefault(session_id, FragmentLog())
        log.add(FilmEntry.HEADER, part().header)
        for clock in part().clocks:
            log.add(FilmEntry.CLOCK, clock)

    def speak(self, session_id: str, at: float, segment: int, second: float) -> None:
        """From second `at` of the part on that segment is heard, from that second of it on."""
        self.logs[session_id].add(FilmEntry.SPOKEN, FILM_SPOKEN.pack(at, segment, second))

    def grow(self, count: int, session_id: str | None = None) -> None:
        """So many fragments more, of the part that runs."""
        log = self.logs[session_id or next(iter(self.logs))]
        for fragment in part().fragments[self._next : self._next + count]:
            log.add(FilmEntry.FRAGMENT, fragment)
        self._next += count

    def end(self, session_id: str) -> None:
        """The part is over."""
        if session_id in self.logs:
            self.logs[session_id].add(FilmEntry.END, FilmPart(frames=75, dropped=2).model_dump_json().encode())

    def close(self, session_id: str) -> None:
        """The session is over."""
        if session_id in self.logs:
            self.end(session_id)
            self.logs[session_id].add(FilmEntry.CLOSED)

    async def _record(self, session_id: str, body: AgentRecordingRequest) -> FilmPosition:
        if self.refuses is not None:
            raise self.refuses
        if body.state is RecordingState.RECORDING:
            self.begin(session_id, body)
        else:
            self.end(session_id)
        log = self.logs[session_id]
        return FilmPosition(log_id=log.log_id, entries=log.last)

    async def _entries(self, session_id: str, after: int = 0, log_id: str = "") -> StreamingResponse:
        if session_id not in self.logs:
            raise ProblemError(ErrorCode.SESSION_NOT_FOUND, "no such session")
        return answer(self.logs[session_id], after, log_id)
