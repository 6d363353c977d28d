"""Makes the plugin's two calls to the address that is given, and prints what became of each. A stop returns nothing.

Runs in livekit-agents' environment.
"""

from __future__ import annotations

import asyncio
import json
import sys

from livekit.agents import APIConnectOptions
from livekit.plugins.musetalk.client import MuseTalkError, OrchestratorClient


async def main(url: str) -> None:
    orchestrator = OrchestratorClient(url, "key", APIConnectOptions(max_retry=3, retry_interval=0.01, timeout=60))
    for call in (orchestrator.start({"room": "r"}), orchestrator.stop("ses_1")):
        try:
            print(json.dumps(await call))
        except MuseTalkError as error:
            print(json.dumps([error.code, error.status]))


asyncio.run(main(sys.argv[1]))
