"""The SDK's threads call into Python until a moment after they were asked to end; an interpreter that is gone by then aborts."""

from __future__ import annotations

import atexit
import time

_WIND_DOWN_S = 0.5

atexit.register(time.sleep, _WIND_DOWN_S)  # runs after the SDK's own handler, which is registered later
