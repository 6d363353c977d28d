"""Builds the networks of a models folder: when an engine starts, and once more in a wider type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from musetalk_agent.engines.musetalk.loading import load_parsing, load_taesd, load_unet, load_vae, load_whisper
from musetalk_agent.engines.musetalk.network import (
    AudioEncoder,
    FaceEncoder,
    FoldedUNet,
    Network,
    PatchDecoder,
    TinyDecoder,
)
from musetalk_agent.engines.musetalk.overflow import Part, WideDecoder
from musetalk_agent.engines.musetalk.parsing import Parser
from musetalk_agent.engines.musetalk.profiles import Profile
from musetalk_agent.engines.musetalk.tensorrt import TensorRTPlan, find_plan
from musetalk_agent.errors import WeightsMissing


@dataclass(frozen=True, slots=True)
class Networks:
    """What an engine runs: `network` makes frames; `encoder` and, where its weights are there, `parse` prepare avatars."""

    network: Network
    encoder: FaceEncoder
    parse: Parser | None


def load_networks(models: Path, profile: Profile, device: torch.device, dtype: torch.dtype) -> Networks:
    """Loads them onto the device. Raises `WeightsMissing`, `WeightsInvalid`, and what the device raises."""
    vae = load_vae(models, device, dtype)
    encoder = FaceEncoder(vae).to(device)
    audio = AudioEncoder(load_whisper(models, device, dtype))
    if plan := find_plan(models, profile, device, dtype):
        network = Network(audio, plan, nn.Identity(), dtype)
    else:
        unet = FoldedUNet(load_unet(models, device, dtype))
        network = Network(audio, unet, decoder_of(profile, vae, models, device, dtype), dtype)
    bisenet = load_parsing(models, device, torch.float32)
    return Networks(_ready(network, device), encoder, None if bisenet is None else Parser(bisenet))


def widened(network: Network, part: Part, models: Path, profile: Profile, dtype: torch.dtype) -> Network:
    """The network with its decoder, or with all its parts, of `dtype`, on the device where it is; the rest is shared with it.

    Raises `WeightsMissing`, `WeightsInvalid`, and what the device raises.
    """
    device, audio, unet = network.positions.device, network.encoder, network.unet
    outer = network.dtype if part == "decoder" else dtype
    decoder: nn.Module = decoder_of(profile, load_vae(models, device, dtype), models, device, dtype)
    if part == "decoder":
        decoder = WideDecoder(decoder, dtype)
    else:
        audio = AudioEncoder(load_whisper(models, device, dtype))
    if part == "networks" or isinstance(unet, TensorRTPlan):
        unet = FoldedUNet(load_unet(models, device, outer))
    return _ready(Network(audio, unet, decoder, outer), device)


def decoder_of(profile: Profile, vae: nn.Module, models: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The decoder of a profile. Raises `WeightsMissing` where TAESD's weights are not there."""
    if profile.decoder == "sd-vae":
        return PatchDecoder(vae, profile.first_row)
    taesd = load_taesd(models, device, dtype)
    if taesd is None:
        raise WeightsMissing(
            f"The profile {profile.name!r} needs TAESD, not in {models}; run `musetalk-agent fetch-models fast`.",
            field="profile",
            value=profile.name,
        )
    return TinyDecoder(taesd)


def _ready(network: Network, device: torch.device) -> Network:
    return network.to(device).eval().requires_grad_(False)
