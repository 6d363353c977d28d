from __future__ import annotations

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import MediaKind, picture_size, sniff
from musetalk_agent.avatars.picture_decoder import decode_picture

from .clips import encoded, face, frames_zip, video

LIMITS = AvatarLimits()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize(("width", "height"), [(64, 64), (129, 67), (640, 480)])
def test_size_from_the_header_is_the_decoded_one(suffix: str, width: int, height: int) -> None:
    data = encoded(np.zeros((height, width, 3), np.uint8), suffix)
    assert picture_size(data, "a") == (width, height)
    assert decode_picture(data, "a", LIMITS).pixels.shape == (height, width, 3)


def test_webp_of_every_layout() -> None:
    picture = np.zeros((80, 96, 4), np.uint8)
    lossless = bytes(cv2.imencode(".webp", picture[:, :, :3], [cv2.IMWRITE_WEBP_QUALITY, 101])[1])
    with_alpha = bytes(cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, 80])[1])
    assert {lossless[12:16], with_alpha[12:16]} == {b"VP8L", b"VP8X"}
    assert picture_size(lossless, "a") == picture_size(with_alpha, "b") == (96, 80)


def test_progressive_jpeg() -> None:
    data = bytes(cv2.imencode(".jpg", face(128), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1])
    assert picture_size(data, "a") == (128, 128)


def test_transparency_is_laid_on_white() -> None:
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[:, 32:] = (10, 20, 30, 255)
    pixels = decode_picture(encoded(picture), "a", LIMITS).pixels
    assert pixels.shape == (64, 64, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[0, 63].tolist() == [10, 20, 30]


def test_sixteen_bits_and_grey_become_eight_bit_bgr() -> None:
    deep = encoded(np.full((64, 64, 3), 128 << 8, np.uint16))
    grey = encoded(np.full((64, 64), 77, np.uint8))
    assert decode_picture(deep, "a", LIMITS).pixels[0, 0].tolist() == [128, 128, 128]
    assert decode_picture(grey, "a", LIMITS).pixels[0, 0].tolist() == [77, 77, 77]


def test_sniffing() -> None:
    pictures = [face(64)] * 2
    assert sniff(frames_zip(pictures)) is MediaKind.ZIP
    assert sniff(video(pictures)[:512]) is MediaKind.MP4
    assert sniff(video(pictures, container="webm", codec="libvpx")[:512]) is MediaKind.WEBM
    assert sniff(b"  <!DOCTYPE HTML><p>") is MediaKind.HTML
    assert sniff(b"") is MediaKind.EMPTY
    assert sniff(b"#EXTM3U\n") is MediaKind.PLAYLIST
    assert sniff(b"{}") is MediaKind.TEXT
    assert sniff(bytes(range(256))) is MediaKind.UNKNOWN
