"""The trace of a segment in the agent: when its first frame reached each stage, and how it ended."""

from __future__ import annotations

import time

from musetalk_agent.protocol import traces
from musetalk_agent.protocol.traces import OFF, Value

FIRST_PCM, FEATURES, FRAME, PUBLISHED = "pcm", "features", "frame", "published"
_BEFORE = {FIRST_PCM: "", FEATURES: FIRST_PCM, FRAME: FEATURES, PUBLISHED: FRAME}
"""What each stage follows."""


class SegmentTrace:
    """A span for the segment, and one in it for each stage: from the one before it until the first frame is through.

    Args:
        parent: `traceparent` of the utterance.
    """

    def __init__(self, segment: int, parent: str | None) -> None:
        self._span = traces.begin("segment", parent, segment=segment)
        self._seen: dict[str, float] = {"": time.time()}
        self._tracing = self._span is not OFF

    def reach(self, stage: str) -> None:
        """Something came through this stage; only the first counts."""
        if not self._tracing or stage in self._seen or _BEFORE[stage] not in self._seen:
            return
        now = time.time()
        traces.begin(stage, self._span.traceparent, self._seen[_BEFORE[stage]]).end(now)
        self._seen[stage] = now

    def event(self, name: str) -> None:
        """Something happened in the segment."""
        if self._tracing:
            self._span.event(name)

    def end(self, **attributes: Value) -> None:
        """The segment is over. Once counts."""
        if self._tracing:
            self._tracing = False
            self._span.set(**attributes)
            self._span.end()


UNTRACED = SegmentTrace(0, None)
"""Of a segment that is not traced."""
