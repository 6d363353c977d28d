"""How an avatar is shown: `avatar_settings` of `/session/start` and its `background`, handed on to the agent as they are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

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
    """The value, checked. Raises ValueError for an invalid one."""
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


Smoothing = Literal["off", "light", "strong"]
Blend = Literal["feather", "multiband", "poisson"]
Mood = Literal["neutral", "warm", "serious"]

BBOX_SHIFT_MOST = 50
"""Pixels, up or down."""


class AvatarSettings(BaseModel):
    """An unknown field, or a value out of its range, is an error that names it.

    Args:
        bbox_shift: pixels of the picture, -50 … 50, by which the middle of MuseTalk's face box is moved down; None leaves it to the
            agent (`MUSETALK_BBOX_SHIFT`). The engine's artefacts depend on it, on the other fields nothing that is kept.
        mouth_gain: 0.5 … 2; how far the mouth moves away from its silent shape, 1 as the engine makes it.
        av_offset_ms: -200 … 200; how much later than the voice the lips move. A negative one makes them wait for more audio.
        smoothing: how much of the trembling between frames is taken out.
        blend: how the mouth's picture is joined to the frame around it.
        sharpen: 0 … 1; how much of the missing detail is given back from the clip's own frames.
        restore: whether a network of restoration makes the face that speaks sharp, where the agent has one loaded and time for it
            (`MUSETALK_RESTORE`); None leaves it to the agent.
        background: what is behind the person: `keep` (the clip as it is), `blur`, `#rrggbb`, `image:` and an address, or
            `transparent`. All but `keep` need a matte, which the preparation makes.
        mood: how the face of a still picture is set, a little: `warm` with a hint of a smile, `serious` with lower brows. Clips
            have their own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bbox_shift: int | None = Field(default=None, ge=-BBOX_SHIFT_MOST, le=BBOX_SHIFT_MOST)
    mouth_gain: float = Field(default=1.0, ge=0.5, le=2.0, allow_inf_nan=False)
    av_offset_ms: int = Field(default=0, ge=-200, le=200)
    smoothing: Smoothing = "light"
    blend: Blend = "feather"
    sharpen: float = Field(default=0.0, ge=0.0, le=1.0, allow_inf_nan=False)
    restore: bool | None = None
    background: Background = "keep"
    mood: Mood = "neutral"

    @property
    def prepared_for(self) -> tuple[int | None, bool]:
        """What of these settings the preparation depends on: settings that are alike in this need nothing new."""
        return self.bbox_shift, self.background != "keep"


DEFAULTS = AvatarSettings()
