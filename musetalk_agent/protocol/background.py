"""What is behind an avatar: `background` of its settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, WithJsonSchema

IMAGE = "image:"
URL_CHARACTERS = 4096
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_ADDRESS = re.compile(r"https?://[^\s]+", re.IGNORECASE)
_WORDS = ("keep", "blur", "transparent")


@dataclass(frozen=True)
class BackgroundChoice:
    """A background, taken apart. With the kind `colour` it has red, green and blue, 0 … 255; with `image` an address."""

    kind: Literal["keep", "blur", "transparent", "colour", "image"]
    colour: tuple[int, int, int] = (0, 0, 0)
    url: str = ""


def background_choice(text: str) -> BackgroundChoice:
    """Takes a checked `background` apart."""
    if text.startswith("#"):
        return BackgroundChoice("colour", colour=(int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)))
    if text.startswith(IMAGE):
        return BackgroundChoice("image", url=text[len(IMAGE) :])
    return BackgroundChoice("blur" if text == "blur" else "transparent" if text == "transparent" else "keep")


def _checked(value: object) -> str:
    """Raises ValueError for what is none."""
    text = value if isinstance(value, str) else ""
    if text in _WORDS:
        return text
    if _COLOUR.fullmatch(text.lower()):
        return text.lower()
    if text.startswith(IMAGE) and _ADDRESS.fullmatch(text[len(IMAGE) :]) and len(text) <= URL_CHARACTERS:
        return text
    raise ValueError(
        f"{str(value)[:60]!r} is no background: give keep, blur, transparent, a colour such as #1a2b3c, or image: and the http(s) "
        "address of a picture"
    )


Background = Annotated[
    str,
    BeforeValidator(_checked),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": "^(keep|blur|transparent|#[0-9a-fA-F]{6}|image:[hH][tT][tT][pP][sS]?://\\S+)$",
            "maxLength": URL_CHARACTERS,
        }
    ),
]
"""`keep`, `blur`, `transparent`, `#rrggbb`, or `image:` and an address. Colours are in small letters."""
