"""How a WHIP push is fed: the records between the agent and `whip_worker`."""

from __future__ import annotations

import struct

RECORD = struct.Struct("<BdIII?")
"""Kind, time (monotonic seconds, the same in both processes), bytes that follow, width, height, key frame."""
SOUND, PICTURE, BITRATE, END = range(4)
"""int16 samples; I420 planes; bits per second as the width; the end."""
