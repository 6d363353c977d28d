"""Sound as it comes over HTTP: bare PCM, or a WAV file of unknown length. Without I/O."""

from __future__ import annotations

import struct

PCM_RATE = 24000
"""Rate of bare PCM: int16 little endian mono, as OpenAI has it."""
_HEADER_BYTES = 4096
"""The sound of a WAV file begins before this."""
_RATES = range(8000, 48001)
_ENCODED = (b"ID3", b"OggS", b"fLaC", b"\xff\xfb", b"\xff\xf3", b"\xff\xf1", b"{")


class WaveError(Exception):
    """The bytes are not sound of a form that is known."""


class SoundReader:
    """Bytes in as they come, whole samples out."""

    def __init__(self) -> None:
        self.rate = PCM_RATE
        self.samples = 0
        self._head: bytearray | None = bytearray()
        self._odd = b""

    def feed(self, block: bytes) -> bytes:
        """Int16 mono PCM of what came. Raises WaveError."""
        if self._head is not None:
            self._head += block
            if len(self._head) < 12:
                return b""
            begin = self._begin(bytes(self._head))
            if begin is None:
                return b""
            block, self._head = bytes(self._head[begin:]), None
        block = self._odd + block
        whole = len(block) // 2 * 2
        self._odd = block[whole:]
        self.samples += whole // 2
        return block[:whole]

    def _begin(self, head: bytes) -> int | None:
        """Where the sound begins; None while that has not come."""
        if head.startswith(_ENCODED):
            raise WaveError(f"it begins with {head[:4]!r}")
        if not head.startswith(b"RIFF") or head[8:12] != b"WAVE":
            return 0
        at, known = 12, False
        while at + 8 <= len(head):
            name, size = head[at : at + 4], struct.unpack_from("<I", head, at + 4)[0]
            if name == b"data":
                if not known:
                    raise WaveError("a WAV without its format")
                return at + 8
            if name == b"fmt " and at + 24 <= len(head):
                self._format(*struct.unpack_from("<HHIIHH", head, at + 8))
                known = True
            at += 8 + size + size % 2
        if at > _HEADER_BYTES or len(head) > _HEADER_BYTES:
            raise WaveError("a WAV whose sound does not begin")
        return None

    def _format(self, form: int, channels: int, rate: int, _bytes_per_s: int, _block: int, bits: int) -> None:
        if form not in (1, 0xFFFE) or channels != 1 or bits != 16 or rate not in _RATES:
            raise WaveError(f"a WAV of {channels} channels, {rate} Hz, {bits} bits, format {form}; mono int16 is taken")
        self.rate = rate
