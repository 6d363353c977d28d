"""Streams a file in blocks that are read in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

_BLOCK_BYTES = 1 << 18


async def file_blocks(path: Path) -> AsyncIterator[bytes]:
    """The bytes of a file, at most 256 KB at a time. Raises OSError. Closing the iterator closes the file."""
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while block := await asyncio.to_thread(file.read, _BLOCK_BYTES):
            yield block
    finally:
        file.close()
