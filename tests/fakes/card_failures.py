"""How a call of a card fails (`tests.fakes.cuda`)."""

from __future__ import annotations

from typing import Literal

Kind = Literal["dies", "hangs", "full"]
"""`dies`: the call and every later one raise, as with a broken context. `hangs`: the call does not return and the card never ends
what it has. `full`: the call and every later one like it raise out of memory."""
KINDS: tuple[Kind, ...] = ("dies", "hangs", "full")
