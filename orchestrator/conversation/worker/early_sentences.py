"""Splits an answer into sentences for the voice while the model writes it, and cuts the first one early, so that its audio begins
sooner."""

from __future__ import annotations

import re

from livekit import blingfire  # type: ignore[attr-defined]  # it is in that environment
from livekit.agents import tokenize
from livekit.agents.tokenize.token_stream import BufferedSentenceStream

_CLAUSE = re.compile(r"[,;:–—][\"'”’»)]*\s|[，、；：。！？]")
SHORTEST_CLAUSE = 10
"""Characters: "Well," alone would sound broken."""
_SHORTEST = 20
"""A shorter sentence goes together with the next one, but for the first."""
Piece = tuple[str, int, int]


class EarlySentences(tokenize.SentenceTokenizer):  # type: ignore[misc]  # livekit-agents lives in an environment of its own
    """For one answer a stream. The pieces put together are the text as it came."""

    def tokenize(self, text: str, *, language: str | None = None) -> list[str]:
        """Sentences, the first one as its first clause."""
        return [piece for piece, _, _ in Splitting()(text) if piece]

    def stream(self, *, language: str | None = None) -> BufferedSentenceStream:
        """A piece comes as soon as the next one has begun; the first clause, as soon as it is over."""
        return BufferedSentenceStream(tokenizer=Splitting(), min_token_len=1, min_ctx_len=1)


class Splitting:
    """Is called with what has not been spoken yet; all pieces but the last are spoken then. After a first clause with nothing
    behind it yet that last one is empty.
    """

    def __init__(self) -> None:
        self._begun = False

    def __call__(self, text: str) -> list[Piece]:
        """Pieces of the text with the places where they begin and end."""
        pieces: list[Piece] = []
        if not text.strip():
            return pieces
        start = 0
        if not self._begun and (clause := _first_clause(text, len(text))) == len(text):
            self._begun = True
            return [(text, 0, clause), ("", clause, clause)]
        for _, end in blingfire.text_to_sentences_with_offsets(text)[1]:
            if not (self._begun or pieces):
                clause = _first_clause(text, end) or end
                if clause < end:
                    pieces.append((text[:clause], 0, clause))
                    start = clause
            elif end - start < _SHORTEST:
                continue
            pieces.append((text[start:end], start, end))
            start = end
        if text[start:].strip():
            pieces.append((text[start:], start, len(text)))
        self._begun = self._begun or len(pieces) > 1
        return pieces


def _first_clause(text: str, end: int) -> int | None:
    """Where it ends; None where no clause is over before `end`."""
    return next((c.end() for c in _CLAUSE.finditer(text, 0, end) if c.end() > SHORTEST_CLAUSE), None)
