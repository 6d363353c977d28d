"""Limits of what an avatar may cost, in bytes, pixels, frames and seconds. Every refusal names the limit that it met."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AvatarLimits:
    """Limits of fetching, unpacking and decoding. All are checked before the cost is paid.

    Args:
        source_bytes: size of the zip, video or image as it is fetched or uploaded.
        fetch_seconds: whole fetch, every redirect included.
        fetch_connect_seconds: one TCP or TLS handshake.
        fetch_silence_seconds: longest wait for the next bytes.
        fetch_redirects: hops after the first request.
        fetch_grace_seconds: time after which a fetch must have kept `fetch_bytes_per_second` on average.
        zip_entries: entries in the archive, of any kind.
        zip_entry_bytes: one unpacked entry.
        zip_bytes: all unpacked entries.
        zip_ratio: unpacked by packed size, of an entry and of the whole.
        frames: frames of the prepared avatar.
        picture_pixels: pixels of a frame of a video or of an animated image.
        rich_pixels: pixels of a frame of a video of more than 1.5 bytes a pixel (more than 8 bits, chroma finer than 4:2:0, alpha)
            whose codec keeps frames for others to refer to.
        still_pixels: pixels of a still image or a frame of a zip; a JPEG of so many is scaled down as it is decoded.
        still_bytes: memory for the pixels of the images that are decoded at a time, before they are scaled down.
        decoded_pixels: pixels of all frames together, before scaling.
        side_pixels_min: shortest side that can hold a usable face.
        jpeg_scans: passes of a progressive JPEG; common encoders make about ten, and every one costs a whole image.
        jpeg_scan_pixels: those times the pixels.
        video_seconds: duration of a video.
        video_pixels: pixels of all frames of a video together; they are decoded one at a time.
        video_tracks: tracks of a video, of any kind.
        video_samples: samples that the index of a video lists, all tracks and edits together.
        bundle_bytes: I420 frames of the prepared avatar.
        decoder_bytes: memory that a decoder process may take beyond what it has when a clip comes, whatever the clip's size.
        decoder_bytes_per_pixel: added to that for each pixel of its largest frame.
        decoder_step_cpu_seconds: CPU time from one frame to the next.
        decoder_silence_seconds: real time from one frame to the next.
        decoder_seconds: real time of the whole preparation.
    """

    source_bytes: int = 256 << 20
    fetch_seconds: float = 30.0
    fetch_connect_seconds: float = 5.0
    fetch_silence_seconds: float = 8.0
    fetch_redirects: int = 5
    fetch_grace_seconds: float = 4.0
    fetch_bytes_per_second: int = 16 << 10
    zip_entries: int = 5_000
    zip_entry_bytes: int = 64 << 20
    zip_bytes: int = 2 << 30
    zip_ratio: int = 200
    frames: int = 3_000
    picture_pixels: int = 4096 * 4096
    rich_pixels: int = 4096 * 2176
    still_pixels: int = 256 << 20
    still_bytes: int = 208 << 20
    decoded_pixels: int = 4 << 30
    side_pixels_min: int = 64
    jpeg_scans: int = 100
    jpeg_scan_pixels: int = 1 << 30
    video_seconds: float = 60.0
    video_pixels: int = 16 << 30
    video_tracks: int = 32
    video_samples: int = 200_000
    bundle_bytes: int = 2 << 30
    decoder_bytes: int = 96 << 20
    decoder_bytes_per_pixel: int = 112
    decoder_step_cpu_seconds: int = 20
    decoder_silence_seconds: float = 60.0
    decoder_seconds: float = 300.0
