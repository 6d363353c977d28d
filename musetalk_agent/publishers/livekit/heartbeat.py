"""Asks the SFU for answers while no video flows, whose feedback else shows that it lives (`stats.Liveness`).

Without subscribers the SDK encodes nothing (dynacast), and only reports come back, a second apart. A data packet is acknowledged by
the SFU itself within 0.2 s (SCTP), for any addressee.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from livekit import rtc

from musetalk_agent.protocol.sdk_errors import SdkError, sdk_errors

log = logging.getLogger(__name__)

PERIOD_S = 0.2
TOPIC = "avatar.alive"
_TIMEOUT_S = 0.5


async def keep_answers_coming(room: rtc.Room, wanted: Callable[[], bool]) -> None:
    """Sends the SFU a byte five times a second while `wanted()`, until cancelled.

    It is addressed to the sender, so that no participant gets it.
    """
    while True:
        await asyncio.sleep(PERIOD_S)
        if not wanted():
            continue
        me = room.local_participant
        try:
            with sdk_errors():
                async with asyncio.timeout(_TIMEOUT_S):
                    await me.publish_data(b".", reliable=False, destination_identities=[me.identity], topic=TOPIC)
        except (SdkError, TimeoutError) as error:  # as during a reconnect; the next one comes
            log.debug("no heartbeat", extra={"room": room.name, "error": repr(error)})
