"""What is behind an avatar, as it is asked for."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from musetalk_agent.protocol.avatar_settings import AvatarSettings, BackgroundChoice, background_choice


@pytest.mark.parametrize(
    ("given", "kept", "choice"),
    [
        ("keep", "keep", BackgroundChoice("keep")),
        ("blur", "blur", BackgroundChoice("blur")),
        ("transparent", "transparent", BackgroundChoice("transparent")),
        ("#1A2b3C", "#1a2b3c", BackgroundChoice("colour", colour=(0x1A, 0x2B, 0x3C))),
        ("image:https://a.example/B.png", "image:https://a.example/B.png", BackgroundChoice("image", url="https://a.example/B.png")),
    ],
)  # fmt: skip
def test_every_background_is_taken_apart(given: str, kept: str, choice: BackgroundChoice) -> None:
    settings = AvatarSettings.model_validate({"background": given})
    assert settings.background == kept and background_choice(settings.background) == choice
    assert AvatarSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    "given",
    ["", "Keep", "red", "#12345", "#1234567", "#12345g", "image:", "image:ftp://a/b.png", "image:https://a b", 7, None,
     "image:https://a/" + "b" * 4096],
)  # fmt: skip
def test_anything_else_is_refused_with_what_there_is(given: object) -> None:
    with pytest.raises(ValidationError, match="is no background: give keep, blur,") as refused:
        AvatarSettings.model_validate({"background": given})
    assert refused.value.errors()[0]["loc"] == ("background",)


def test_a_preparation_depends_on_whether_there_is_another_background() -> None:
    kept, blurred, red = (AvatarSettings(background=each) for each in ("keep", "blur", "#ff0000"))
    assert kept.prepared_for != blurred.prepared_for == red.prepared_for
    assert AvatarSettings(bbox_shift=3).prepared_for != kept.prepared_for
