"""The CPU lip-sync engine: the idle frame's mouth deformed by landmarks, with an inside that appears as the lips part."""

from musetalk_agent.engines.warp.engine import WarpEngine

__all__ = ["WarpEngine"]
