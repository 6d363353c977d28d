"""Structured logs of both services, without secrets: one JSON object a line, whatever logged it."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

_SECRETS = (
    (re.compile(r"([?&](?:access_)?token=)[^&\s\"'\\]+"), r"\1***"),
    (re.compile(r"(Bearer )[A-Za-z0-9._~+/=-]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\b(whsec_|mtk_|mtp_)[A-Za-z0-9+/=_-]+"), r"\1***"),
    (re.compile(r"\b([a-z][a-z0-9+.-]{1,15}://)[^/@\s\"'\\]+@"), r"\1***@"),
    (re.compile(r"\b(rtmps?://[^/\s\"'\\]+/)[^\s\"'\\,]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"), "***"),
)
_REFUSED = "ASGI callable returned without completing handshake."
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "websocket"}
_FOREIGN = ("uvicorn", "uvicorn.error", "uvicorn.access", "websockets", "websockets.client", "httpx", "asyncio")


def redact(text: str) -> str:
    """Blots out tokens, keys and secrets, the names and passwords of addresses, and the paths of RTMP ones, which are keys."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class RedactingFilter(logging.Filter):
    """For loggers that are not ours and may print a request's address: what they say is redacted before any handler sees it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record; keeps it, but for what uvicorn says of every refused WebSocket (our own log has it)."""
        record.msg, record.args = redact(record.getMessage()), None
        return record.msg != _REFUSED


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message and whatever was passed as `extra`, redacted as a whole."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return redact(json.dumps(line, default=str, ensure_ascii=False))


def guard() -> None:
    """Redacts what the libraries log, whichever code configured the handlers. Safe to call again."""
    for name in _FOREIGN:
        logger = logging.getLogger(name)
        if not any(isinstance(existing, RedactingFilter) for existing in logger.filters):
            logger.addFilter(RedactingFilter())


def configure(level: str = "INFO") -> None:
    """Sends every log as JSON to stderr. Called once, by the program."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line per poll of an agent has no information
    guard()
