"""Colours of HDR and wide-gamut video as sRGB: one colour table for a clip, applied by FFmpeg's `haldclut`.

FFmpeg's own mapping (swscale's `perceptual` intent) gives the same image up to diffuse white, but takes seven seconds to prepare.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorTrc
from numpy.typing import NDArray

Real = NDArray[np.float64]

_LEVEL = 8
"""Of the Hald image: 64 steps of each colour, in an image of 512×512. With 36 steps skin in PQ is off by four levels."""
_FORMAT = "rgb48le"
_TICK = Fraction(1, 1000)
_WHITE_NITS = 203.0
"""Diffuse white of HDR, which becomes SDR's white (BT.2408-7, table 1)."""
_HLG_PEAK_NITS, _HLG_GAMMA = 1000.0, 1.2  # BT.2100-2, table 5
_KNEE = 0.8
"""Linear light up to here is kept; what is brighter is squeezed in below white, and diffuse white itself becomes 0.9."""
_TO_709 = {
    ColorPrimaries.BT2020: np.array(
        [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    ),
    ColorPrimaries.SMPTE432: np.array([[1.2249, -0.2247, 0.0], [-0.042, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]),
    ColorPrimaries.SMPTE431: np.array(
        [[1.1578, -0.155, -0.0028], [-0.0415, 1.0456, -0.0041], [-0.0179, -0.0787, 1.0968]]
    ),
}
"""Linear light of BT.2020, Display P3 and DCI-P3 (adapted to D65) in BT.709's primaries (BT.2407-0; H.273, table 2)."""
HDR = frozenset({ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67})


def needs_mapping(transfer: int, primaries: int) -> bool:
    """Whether colours of this transfer and these primaries (as H.273 numbers them) must be mapped to be seen right on sRGB."""
    return transfer in HDR or primaries in _TO_709


class ToneMap:
    """Maps images of one size.

    Args:
        transfer, primaries: the clip's, as H.273 numbers them; HDR without primaries has BT.2020's.
        width, height: size of the images.
    """

    def __init__(self, transfer: int, primaries: int, width: int, height: int) -> None:
        side = _LEVEL**3
        table = VideoFrame.from_ndarray(_table(transfer, primaries).reshape(side, side, 3), format=_FORMAT)
        table.pts, table.time_base = 0, _TICK
        self._graph = Graph()
        self._source = self._graph.add_buffer(width=width, height=height, format=VideoFormat(_FORMAT), time_base=_TICK)
        colours = self._graph.add_buffer(
            width=side, height=side, format=VideoFormat(_FORMAT), name="table", time_base=_TICK
        )
        lookup, self._sink = self._graph.add("haldclut", "clut=first"), self._graph.add("buffersink")
        self._source.link_to(lookup, 0, 0)
        colours.link_to(lookup, 0, 1)
        lookup.link_to(self._sink)
        self._graph.configure()
        colours.push(table)
        colours.push(None)
        self._count = 0

    def apply(self, picture: VideoFrame) -> VideoFrame:
        """The image, of format `rgb48le` both before and after."""
        picture.pts, picture.time_base = self._count, _TICK
        self._count += 1
        self._source.push(picture)
        mapped = self._sink.pull()
        assert isinstance(mapped, VideoFrame)
        return mapped


def _table(transfer: int, primaries: int) -> NDArray[np.uint16]:
    """sRGB of every signal on the grid, uint16 `[…, 3]`, red fastest: the order of a Hald image."""
    steps = np.linspace(0.0, 1.0, _LEVEL * _LEVEL)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    table: NDArray[np.uint16] = np.rint(
        to_srgb(np.stack([red, green, blue], -1).reshape(-1, 3), transfer, primaries) * 65535
    ).astype(np.uint16)
    return table


def to_srgb(signal: Real, transfer: int, primaries: int) -> Real:
    """sRGB of colours `[n, 3]` of this transfer and these primaries (as H.273 numbers them), all 0 … 1; HDR without primaries
    that are known here has BT.2020's."""
    if transfer in HDR and primaries not in _TO_709:
        primaries = ColorPrimaries.BT2020
    light = _light(signal, transfer) @ _TO_709[ColorPrimaries(primaries)].T
    shown = np.clip(_compressed(light) if transfer in HDR else light, 0.0, 1.0)
    coded: Real = np.where(shown <= 0.0031308, shown * 12.92, 1.055 * shown ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    return coded


def _light(signal: Real, transfer: int) -> Real:
    """Linear light on the display, with diffuse white at 1."""
    if transfer == ColorTrc.SMPTE2084:  # BT.2100-2, table 4
        root = signal ** (1 / 78.84375)
        nits: Real = 10_000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        return nits / _WHITE_NITS
    if transfer == ColorTrc.ARIB_STD_B67:  # BT.2100-2, table 5
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        luma = scene @ np.array([0.2627, 0.678, 0.0593])
        shown: Real = _HLG_PEAK_NITS * scene * np.maximum(luma, 1e-9)[:, None] ** (_HLG_GAMMA - 1)
        return shown / _WHITE_NITS
    # Displays show SDR's signal much as they show sRGB's, whatever the camera's curve was: greys stay what they are.
    linear: Real = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return linear


def _compressed(light: Real) -> Real:
    """Light whose brightest primary stays below 1; hue and saturation are kept."""
    peak = light.max(1)
    over = np.maximum(peak - _KNEE, 0) / (1 - _KNEE)
    kept = np.minimum(peak, _KNEE) + (1 - _KNEE) * over / (1 + over)
    result: Real = light * (kept / np.maximum(peak, 1e-9))[:, None]
    return result
