"""What makes an answer begin early, in the environment of livekit-agents: pieces for the voice, and a short memory."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from orchestrator.conversation.conversations import PLUGIN, find_python
from orchestrator.conversation.embedded_model import ROOT
from orchestrator.worker_process import bare_environment
from tests.integrations.conversation import warm_python
from tests.waiting import NEVER_S

pytestmark = pytest.mark.skipif(
    find_python() is None, reason="no environment for conversations: run `tools/setup conversation`"
)
PROGRAM = """
import asyncio, json, sys
from orchestrator.conversation.worker.early_sentences import EarlySentences
from orchestrator.conversation.worker.models import oldest_kept
async def pieces(text):
    stream, found, words = EarlySentences().stream(), [], 0
    async def read():
        async for piece in stream: found.append((words, piece.token))
    reading = asyncio.create_task(read())
    for word in text.split(" "):
        words += 1
        stream.push_text(word + " ")
        for _ in range(5): await asyncio.sleep(0)
    stream.end_input()
    await reading
    return found
texts, lengths = json.load(sys.stdin)
json.dump([[asyncio.run(pieces(text)) for text in texts], [oldest_kept(sizes) for sizes in lengths]], sys.stdout)
"""


def answered(texts: list[str], sizes: list[list[int]]) -> Any:
    """Pieces of each text, each with how many of its words had come; and what is kept of each history."""
    environment = bare_environment(path=(str(PLUGIN), str(ROOT)))
    program = [warm_python.path(), "-c", PROGRAM]
    done = subprocess.run(
        program, input=json.dumps([texts, sizes]).encode(), env=environment, stdout=-1, timeout=NEVER_S
    )
    return json.loads(done.stdout)


def test_the_first_clause_is_spoken_early_and_a_small_model_gets_the_newest_of_a_long_conversation() -> None:
    texts = [
        "I have heard you, and here is my answer. It has a second sentence, which takes longer. Yes. No. Fine.",
        "Well, that is good. I am Dr. Smith, and it costs 3.5 dollars.",
        "Yes.",
        "A sentence without any clause",
    ]
    pieces, kept = answered(texts, [[100] * count for count in (0, 10, 11, 18, 19)] + [[5000]])
    assert pieces[0][:2] == [[4, "I have heard you, "], [10, "and here is my answer."]]
    assert [text for _, text in pieces[1]] == ["Well, that is good.", " I am Dr. Smith, and it costs 3.5 dollars."]
    assert [text for _, text in pieces[2]] == ["Yes."] and len(pieces[3]) == 1
    for found, text in zip(pieces, texts, strict=True):
        assert "".join(piece for _, piece in found).strip() == text
    assert kept == [0, 0, 8, 8, 16, 0], "in steps: in between the prompt begins as before"
