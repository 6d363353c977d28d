"""The browser's table of retries is Python's."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

from musetalk_agent.protocol import retries
from tests.clients.printed import ROOT


def test_javascript_and_python_have_the_same_table() -> None:
    source = (ROOT / "orchestrator" / "web" / "retries.js").read_text("utf-8")
    found = re.search(r"export const RETRIES = (\{.*?\n\});", source, re.DOTALL)
    assert found
    assert json.loads(found[1]) == {
        "statuses": {str(status): verdict for status, verdict in retries.STATUSES.items()},
        "codes": retries.CODES,
        "closes": {str(close): verdict for close, verdict in retries.CLOSES.items()},
        "link": asdict(retries.LINK),
        "call": asdict(retries.CALL),
        "silence_s": retries.SILENCE_S,
        "spread": retries.SPREAD,
    }
