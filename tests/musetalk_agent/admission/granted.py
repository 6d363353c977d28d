"""A machine that grants what a test says, and has used what it says."""

from __future__ import annotations

from musetalk_agent.admission.machine import Host, Memory


class Granted(Host):
    """`reported` is its memory; None for a system that says nothing of it."""

    def __init__(self, cores: float = 2.0, memory: Memory | None = None) -> None:
        super().__init__()
        self.granted, self.reported, self.used_s = cores, memory, 0.0

    def cores(self) -> float:
        return self.granted

    def memory(self) -> Memory | None:
        return self.reported

    def cpu_s(self) -> float:
        return self.used_s
