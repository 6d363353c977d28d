"""MuseTalk v1.5 behind the engine interface: artefacts once per bundle, frames of all sessions in batches on one device."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.interface import PatchRequest, Progress
from musetalk_agent.engines.musetalk.artefacts import MuseTalkArtefacts
from musetalk_agent.engines.musetalk.avatar_store import Avatar, AvatarStore, MuseTalkSession
from musetalk_agent.engines.musetalk.building import load_networks, widened
from musetalk_agent.engines.musetalk.compiling import compiler_fault
from musetalk_agent.engines.musetalk.device import (
    ANSWER_S,
    Card,
    card_for,
    convolves_bfloat16,
    device_errors,
    enough_memory,
)
from musetalk_agent.engines.musetalk.face_region import talks, upright
from musetalk_agent.engines.musetalk.forwards import Findings, Forward, Kind, chosen, findings_key, keep_kernels
from musetalk_agent.engines.musetalk.network import (
    FACE,
    LATENT_SHAPE,
    Network,
)
from musetalk_agent.engines.musetalk.overflow import OverflowGuard, Part
from musetalk_agent.engines.musetalk.picture.live_restoration import live_restoration
from musetalk_agent.engines.musetalk.picture.mouth_picture import MouthPicture
from musetalk_agent.engines.musetalk.profiles import BUCKETS, COMPILED_BUCKETS, Options, Profile, profile_named
from musetalk_agent.engines.musetalk.runner import Launched, Runner, Slowdown, Throughput
from musetalk_agent.errors import EngineOutOfMemory, EngineUnavailable
from musetalk_agent.features.extractor import FeatureExtractor
from musetalk_agent.features.whisper_features import WhisperFeatures, rest
from musetalk_agent.media_types import Patch, Pixels
from musetalk_agent.protocol.avatar_settings import DEFAULTS, AvatarSettings

log = logging.getLogger(__name__)

ENCODE_BATCH = 4
"""Poses encoded at once while an avatar is prepared: 2 TFLOP, a few milliseconds of a large card, which speech may have to wait."""
GEOMETRY_VERSION = 2
"""Of boxes, crops and masks in artefacts; raise it when `face_region` or `artefacts` make other ones of the same clip."""
CPU_BUCKETS = (1,)
"""A processor gains nothing from batches: one frame of the full network keeps it busy for seconds."""
TIMED_BATCH = 8
"""Faces in the batch by which forwards are compared: a card is well used by so many, and every card holds them."""
TIMED_BATCHES = 6
"""The fastest of so many counts: something else may run on the card meanwhile."""
IDLE_BYTES = 64 << 20
"""Most memory for the closed mouths of an avatar's idle frames: 600 frames of a face that is shown at 200 by 180 pixels."""
_UNFIT_LOGGED = 100  # one line of the log for so many faces
_PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class MuseTalkBatch:
    """A batch under way: which requests are on the card, and in which pieces."""

    def __init__(self, engine: MuseTalkEngine, batch: Sequence[PatchRequest], speaking: Sequence[int]) -> None:
        self._engine, self._batch, self._speaking = engine, batch, speaking
        self.pieces: list[Launched] = []

    def wait(self) -> None:
        """Blocks until all faces lie in host memory."""
        for piece in self.pieces:
            piece.wait()

    def patches(self) -> list[Patch | None]:
        """Resizes each face to its box and gives it its mask: OpenCV on the batcher's collecting thread."""
        made: list[Patch | None] = [None] * len(self._batch)
        speaking = iter(self._speaking)
        try:
            for piece in self.pieces:
                for face, good in zip(piece.pixels, piece.good, strict=True):
                    index = next(speaking)
                    made[index] = self._engine.patch(self._batch[index], face, good=bool(good))
        finally:
            for piece in self.pieces:
                piece.release()
        return made


class MuseTalkEngine:
    """Loads the weights of a models folder and makes frames with them.

    `card` and `network` are there to be measured; sessions go through `launch`.

    Raises:
        WeightsMissing, WeightsInvalid: of the models folder.
        EngineUnavailable: no such device, profile or precision.
    """

    name = "musetalk"
    needs_face = True
    fade_out_frames = 4

    def __init__(self, models_dir: Path, options: Options | None = None) -> None:
        self.options = options or Options()
        self.profile: Profile = profile_named(self.options.profile)
        self.card: Card = card_for(self.options.device)
        self._models, self._dtype = models_dir, self._checked_dtype()
        self._features = WhisperFeatures(lookahead_ms=self.options.lookahead_ms)
        self._rest = rest()
        self._avatars = AvatarStore(self.card)
        self.fused: Kind = "off"
        with enough_memory("load MuseTalk's networks"):
            loaded = load_networks(models_dir, self.profile, self.card.device, self._dtype)
            self.network, self._encoder, self._parse = loaded.network, loaded.encoder, loaded.parse
            self._weights_digest = _weights_digest(self._encoder)
            self._runner = self._run_by(self.network, self.card)
            self.card.synchronize()  # weights were converted on another stream than the frames'
        self.pace, self._slowdown = Throughput(), Slowdown()
        self._restoration = None if self.options.restore == "off" else live_restoration(models_dir)
        self.forward_note: str | None = None  # why no other forward than the plain one was tried
        self.unfit_faces, self._closed = 0, False
        wide = torch.bfloat16 if convolves_bfloat16(self.options.device) else torch.float32
        self._overflow = OverflowGuard(self._dtype, wide, self._rebuild)

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.options.device

    @property
    def fingerprint(self) -> str:
        """Of what preparation depends on: the VAE's encoder, how boxes and masks are found, `bbox_shift`."""
        return self.fingerprint_with(DEFAULTS)

    def fingerprint_with(self, settings: AvatarSettings) -> str:
        """The same with the `bbox_shift` of a session."""
        digest = self._weights_digest.copy()
        digest.update(f"{GEOMETRY_VERSION} {self._parse is not None} {self._shift(settings)}".encode())
        return f"musetalk-{digest.hexdigest()[:16]}"

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Bucket sizes; fewer after memory ran out."""
        return self._runner.sizes

    @property
    def features(self) -> FeatureExtractor:
        """Mel windows."""
        return self._features

    def prepare(self, bundle: Bundle, progress: Progress | None = None, settings: AvatarSettings = DEFAULTS) -> None:
        """Derives the artefacts unless they are there. Raises OSError when the bundle's folder cannot be written."""
        self._artefacts(bundle, settings, progress)
        if progress:
            progress(len(bundle), len(bundle))

    def open(self, bundle: Bundle, settings: AvatarSettings = DEFAULTS) -> MuseTalkSession:
        """Readies a bundle; prepares it first where `prepare` has not been called. Raises `EngineUnavailable` without memory."""
        folder = bundle.engine_path(self.fingerprint_with(settings))
        with device_errors():
            avatar = self._avatars.take(folder, lambda: self._artefacts(bundle, settings))
        talking = self._closes_idle(bundle, avatar)
        standing = upright(bundle.landmarks)

        def mouth(idle_index: int) -> float:
            return bundle.mouth(idle_index) if standing[idle_index] else 0.0

        session = MuseTalkSession(self._avatars, folder, avatar, self._rest, mouth, talks=talking, settings=settings)
        session.picture = MouthPicture(avatar.artefacts, bundle, settings)
        wanted = self.options.restore == "live" if settings.restore is None else settings.restore
        if wanted and self._restoration is not None and self._restoration.take(bundle.fps):
            session.picture.restoration = self._restoration
            session.ended = partial(self._restoration.give_back, bundle.fps)
        return session

    def _closes_idle(self, bundle: Bundle, avatar: Avatar) -> bool:
        """Whether idle mouths are closed: the clip talks, a device in real time makes them, and memory holds them."""
        pixels = int((avatar.artefacts.shown[:, 2:] - avatar.artefacts.shown[:, :2]).astype(np.int64).prod(1).sum())
        return (
            talks(bundle.landmarks[bundle.with_mouth()])
            and self.pace.capacity(bundle.fps) != 0
            and 3 * pixels <= IDLE_BYTES
        )

    def warmup(self) -> None:
        """Chooses the network's forward, readies every bucket and measures it.

        Raises `EngineFailed`, or `EngineOutOfMemory` when the card is too small.
        """
        with enough_memory("make frames"):
            self._choose_forward()
            self._runner.warmup()
            self.pace = Throughput(self._runner.measure())
        self._log_pace("musetalk ready")

    def _log_pace(self, event: str) -> None:
        log.info(
            event,
            extra={
                "device": self.device,
                "profile": self.profile.name,
                "fused": self.fused,
                "frames_per_second": round(self.pace.frames_per_second, 1),
                "buckets": {size: round(1000 * seconds, 2) for size, seconds in self.pace.seconds.items()},
                "bytes": self.card.allocated(),
            },
        )

    def capacity(self, fps: int) -> int | None:
        """As measured in `warmup` (`runner.Throughput`), less where the device is slower in service; 0 where it could not hold one
        session in real time."""
        return self.pace.capacity(fps, self._slowdown.factor)

    def batch_seconds(self) -> Mapping[int, float]:
        """As measured in `warmup`; empty on the processor, which never hangs but may have other work."""
        return self.pace.seconds if self.options.device != "cpu" else {}

    def took(self, size: int, seconds: float, *, queued: bool) -> None:
        """Corrects the pace."""
        if (measured := self.pace.seconds.get(size)) is not None:
            self._slowdown.add(measured, seconds, queued=queued)

    def probe(self) -> None:
        """Raises `EngineFailed` on a card whose context in this process is broken, or that hangs."""
        self.card.probe()

    def stats(self) -> dict[str, Any]:
        """Profile, pace, memory, and how many faces were unfit to be shown.

        `slowdown` is how much slower than measured it is now.
        """
        return {
            "profile": self.profile.name,
            "precision": str(self._dtype).removeprefix("torch."),
            "fused": self.fused,
            **({"fused_note": self.forward_note} if self.forward_note else {}),
            "lookahead_ms": self.options.lookahead_ms,
            "frames_per_second": round(self.pace.frames_per_second, 1),
            "slowdown": round(self._slowdown.factor, 2),
            "batch_ms": {str(size): round(1000 * seconds, 3) for size, seconds in self.pace.seconds.items()},
            "memory_bytes": self.memory(),
            "unfit_faces": self.unfit_faces,
            **({"restoration": self._restoration.stats()} if self._restoration is not None else {}),
        }

    def memory(self) -> dict[str, int]:
        """Bytes on the card: `allocated` in all, `avatars` of it for latents."""
        return {"allocated": self.card.allocated(), "avatars": self._avatars.allocated()}

    def launch(self, batch: Sequence[PatchRequest]) -> MuseTalkBatch:
        """Starts the frames that show a mouth, with a blend weight above 0.

        The others become None, and so do faces that are black or hold values that are not finite.

        Raises TypeError for a session of another engine, IndexError for an idle frame that its bundle lacks, `EngineFailed`.
        """
        speaking = [
            index
            for index, request in enumerate(batch)
            if request.blend_weight > 0 and _session_of(request).mouth(request.idle_index) > 0
        ]
        in_flight = MuseTalkBatch(self, batch, speaking)
        if speaking:
            latents = [_session_of(batch[index]).avatar.latents[batch[index].idle_index] for index in speaking]
            heard = [_session_of(batch[index]).heard(batch[index].feature) for index in speaking]
            in_flight.pieces = self._runner.launch(heard, latents)
        return in_flight

    def patch(self, request: PatchRequest, rows: Pixels, *, good: bool) -> Patch | None:
        """The patch of a request from the lowest rows of its face, uint8 BGR `[h, 256, 3]`; those above are under the mask.

        None, counted in `unfit_faces`, for a face that is not `good`. Too many of those have the networks built again.
        """
        self._overflow.add(good=good)
        if not good:
            self.unfit_faces += 1
            if self.unfit_faces % _UNFIT_LOGGED == 1:
                log.warning("the network made a black face or no numbers", extra={"so_far": self.unfit_faces})
            return None
        face = rows
        if len(rows) < FACE:
            face = np.zeros((FACE, FACE, 3), np.uint8)
            face[FACE - len(rows) :] = rows
        session = _session_of(request)
        blend_weight = (
            1.0 if session.rests else min(request.blend_weight, 1.0)
        )  # idle has the lips at rest: nothing to blend with
        blend_weight *= session.mouth(request.idle_index)
        if session.picture is None:
            return session.avatar.artefacts.patch(request.idle_index, face, blend_weight)
        speaking = request.feature is not session.rest
        return session.picture.patch(request.idle_index, face, blend_weight, speaking=speaking)

    def close(self) -> None:
        """Releases the device: weights, graphs, latents. Safe to call twice.

        Every part is released even if others raise, as all of them may on a broken card; the last error is raised at the end.
        """
        self._closed = True
        with ExitStack() as parts:  # called in the opposite order
            parts.callback(self._runner.close)
            parts.callback(self._encoder.to_empty, device="meta")
            parts.callback(self.network.to_empty, device="meta")
            parts.callback(self._avatars.clear)

    def _checked_dtype(self) -> torch.dtype:
        name = self.options.precision or ("float32" if self.options.device == "cpu" else "float16")
        if name not in _PRECISIONS:
            raise EngineUnavailable(f"There is no precision {name!r}.", field="precision", value=name)
        if name == "bfloat16" and not convolves_bfloat16(self.options.device):
            raise EngineUnavailable(
                f"The card {self.options.device} has no convolutions in bfloat16, which needs compute capability 8.0: set "
                "MUSETALK_PRECISION=float16, or float32 where float16 overflows.",
                field="precision",
                value=name,
            )
        return _PRECISIONS[name]

    def _choose_forward(self) -> None:
        """Once: with `auto` by timing, which on the processor would take longer than it could gain."""
        asked = self.options.fuse
        if self.fused != "off" or asked == "off" or (asked == "auto" and self.card.device.type == "cpu"):
            return
        if (self.card.device.type == "cuda" or asked == "compile") and (
            fault := compiler_fault(self.options.kernels_dir)
        ):
            log.warning("the network runs in plain torch", extra={"reason": fault})
            self.forward_note = fault
            return
        if self.options.kernels_dir is not None:
            keep_kernels(self.options.kernels_dir)
        key = findings_key(self.card.device, self.profile.name, self._dtype)
        findings = Findings(self.options.kernels_dir, key)
        with device_errors():
            forward = chosen(asked, self.network, self._frame_seconds, self._some_faces, findings)
        self.network, self.fused = forward.network, forward.kind
        self._runner = self._run_by(self.network, self.card)

    def _frame_seconds(self, forward: Forward) -> float:
        size = min(TIMED_BATCH, self._runner.sizes[-1])
        runner = self._runner_of(forward.network, (size,), self.card)
        try:
            runner.warmup()
            latent, spent = torch.zeros(LATENT_SHAPE, dtype=torch.float16, device=self.card.device), []
            for _ in range(TIMED_BATCHES):
                begun = time.perf_counter()
                for piece in runner.launch([self._rest] * size, [latent] * size):
                    piece.wait(ANSWER_S)
                    piece.release()
                spent.append(time.perf_counter() - begun)
            return min(spent) / size
        finally:
            runner.close()

    def _some_faces(self, forward: Forward) -> Pixels:
        source = torch.Generator().manual_seed(0)
        mel = torch.from_numpy(self._rest).expand(2, *self._rest.shape).contiguous()
        latents = torch.randn(2, *LATENT_SHAPE, generator=source).half()
        with device_errors(), self.card.frames():
            faces, _ = forward.network(mel.to(self.card.device), latents.to(self.card.device))
            made = self.card.host_buffer(tuple(faces.shape), faces.dtype)
            made.copy_(faces, non_blocking=True)
            self.card.record_event().wait(ANSWER_S)
        return np.asarray(made.numpy(), np.uint8)

    def _run_by(self, network: Network, card: Card) -> Runner:
        on_card = self.options.device != "cpu"
        if on_card:
            self._encoder.to(memory_format=torch.channels_last)
            network.to(memory_format=torch.channels_last)  # what tensor cores read; else each layer transposes
        card_buckets = COMPILED_BUCKETS if self.fused == "compile" else BUCKETS
        sizes = self.options.buckets or (card_buckets if on_card else CPU_BUCKETS)
        return self._runner_of(network, sizes, card)

    def _runner_of(self, network: Network, sizes: Sequence[int], card: Card) -> Runner:
        return Runner(network, card, self._rest.shape, self.profile.rows, sizes)

    def _rebuild(self, part: Part, dtype: torch.dtype) -> None:
        """Goes on with a network of which `part` is of `dtype`. Raises what the card raises; the old one runs until then."""
        with enough_memory("build it again"):
            card = card_for(self.options.device)  # streams and graphs of its own: those of the old network still run
            network = widened(self.network, part, self._models, self.profile, dtype)
            runner = self._run_by(network, card)
            runner.warmup()
            pace = Throughput(runner.measure())
            card.synchronize()
        if self._closed:
            runner.close()
            return
        self._runner, self.network, self.pace, self._slowdown = runner, network, pace, Slowdown()
        if self.fused != "off":
            self.forward_note = f"since float16 overflowed, plain torch runs the {part}, in a wider type"
        self._log_pace("musetalk runs in a wider type")

    def _shift(self, settings: AvatarSettings) -> int:
        return self.options.bbox_shift if settings.bbox_shift is None else settings.bbox_shift

    def _artefacts(
        self, bundle: Bundle, settings: AvatarSettings, progress: Progress | None = None
    ) -> MuseTalkArtefacts:
        def make() -> MuseTalkArtefacts:
            return MuseTalkArtefacts.of(bundle, self._encode, self._parse, self._shift(settings), progress)

        with device_errors():
            return MuseTalkArtefacts.found_or_made(bundle.engine_path(self.fingerprint_with(settings)), bundle, make)

    def _encode(self, faces: Pixels) -> NDArray[np.float16]:
        """uint8 BGR `[b, 256, 256, 3]` → float16 `[b, 8, 32, 32]`; smaller batches when memory is short."""
        done: list[NDArray[np.float16]] = []
        step, at = ENCODE_BATCH, 0
        while at < len(faces):
            try:
                with device_errors(), self.card.background():
                    part = torch.from_numpy(np.ascontiguousarray(faces[at : at + step]))
                    encoded = self._encoder(part.to(self.card.device))
                    made = self.card.host_buffer(tuple(encoded.shape), encoded.dtype)
                    made.copy_(encoded, non_blocking=True)
                    self.card.record_event().wait(ANSWER_S)
                done.append(made.numpy().copy())
                at += step
            except torch.cuda.OutOfMemoryError as error:
                if step == 1:
                    raise EngineOutOfMemory("The card has no memory to prepare an avatar.") from error
                self.card.empty_cache()
                step //= 2
        return np.concatenate(done)


def _session_of(request: PatchRequest) -> MuseTalkSession:
    if not isinstance(request.session, MuseTalkSession):
        raise TypeError(
            f"the musetalk engine was given a {type(request.session).__name__}; open the bundle with this engine"
        )
    return request.session


def _weights_digest(encoder: nn.Module) -> hashlib._Hash:
    """Of a few values of every layer in float16, so that the processor and a card agree on the same weights."""
    values = [parameter.detach().flatten()[:4].to("cpu", torch.float16) for parameter in encoder.parameters()]
    return hashlib.sha256(torch.cat(values).numpy().tobytes())
