"""Latents and bytes beside diffusers called plainly, and the guard against faces that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fakes.weights import write_models
from tests.late import late_imports

with late_imports("torch", "diffusers"):
    import torch

    from musetalk_agent.engines.musetalk.loading import load_taesd, load_vae
    from musetalk_agent.engines.musetalk.network import FaceEncoder, PatchDecoder, TinyDecoder, to_pixels
    from tests.musetalk_agent.engines.musetalk.models import CPU, difference, plain


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), taesd=True)


def latents(count: int) -> torch.Tensor:
    return 0.2 * torch.randn(count, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def test_decoded_faces_are_the_references_to_one_step(models: Path) -> None:
    decoder, given = PatchDecoder(load_vae(models, CPU, torch.float32)), latents(2)
    with torch.inference_mode():
        pixels, good = to_pixels(decoder(given))
    reference = plain(models)
    wanted = np.stack([reference.decoded(one) for one in given])
    assert pixels.shape == (2, 256, 256, 3) and good.all()
    assert wanted.std() > 10
    assert difference(pixels, wanted) <= 1
    assert difference(pixels.flip(3), wanted) > 1  # the order of the channels is not luck


def test_taesd_reads_the_unets_latents_unscaled(models: Path) -> None:
    taesd = load_taesd(models, CPU, torch.float32)
    assert taesd is not None
    given = latents(1)
    with torch.inference_mode():
        pixels, _ = to_pixels(TinyDecoder(taesd)(given))
    assert difference(pixels[0], plain(models).decoded_tiny(given[0])) <= 1


def test_decoding_the_lower_rows_gives_their_number_and_nearly_their_bytes(models: Path) -> None:
    vae = load_vae(models, CPU, torch.float32)
    with torch.inference_mode():
        whole, _ = to_pixels(PatchDecoder(vae)(latents(1)))
        lower, good = to_pixels(PatchDecoder(vae, first_row=8)(latents(1)))
    assert lower.shape == (1, 192, 256, 3) and good.all()
    error = np.abs(lower[:, 32:].numpy().astype(int) - whole[:, 96:].numpy())
    assert 0 < error.mean() < 3  # the group norms see another picture: near, not equal


def test_bytes_round_half_to_even_and_clamp() -> None:
    steps = torch.tensor([0.5, 1.5, 2.5, 254.5, -9.0, 300.0])
    decoded = (steps / 255 * 2 - 1).to(torch.float64)[None, None, None].expand(1, 3, 256, 6)
    pixels, _ = to_pixels(decoded)
    wanted = np.round(((decoded[0, 0, 0] / 2 + 0.5).clamp(0, 1).float() * 255).numpy())
    assert pixels[0, 0, :, 0].tolist() == wanted.tolist()
    assert pixels[0, 0, 3:, 0].tolist() == [254, 0, 255]


def test_red_comes_last() -> None:
    decoded = torch.full((1, 3, 256, 256), -1.0)
    decoded[:, 0] = 1.0
    assert to_pixels(decoded)[0][0, 0, 0].tolist() == [0, 0, 255]


def test_faces_that_are_black_or_no_numbers_are_distinguished_each_by_itself() -> None:
    decoded = torch.zeros(5, 3, 256, 256)
    decoded[1, 0, 3, 3] = float("nan")
    decoded[2, 2, 200, 3] = float("inf")
    decoded[3] = -1.0
    decoded[4, :, 128:] = -0.99  # the lower half black, the upper not: upstream's complaint number 14
    pixels, good = to_pixels(decoded)
    assert good.tolist() == [True, False, False, False, False]
    assert pixels[0].unique().tolist() == [128]


def test_a_dark_face_is_a_face() -> None:
    decoded = torch.full((1, 3, 256, 256), -0.9)
    assert to_pixels(decoded)[1].tolist() == [True]


def test_encoded_faces_are_the_references(models: Path) -> None:
    faces = np.random.default_rng(3).integers(0, 256, (2, 256, 256, 3), np.uint8)
    with torch.inference_mode():
        made = FaceEncoder(load_vae(models, CPU, torch.float32))(torch.from_numpy(faces)).numpy()
    reference = plain(models)
    wanted = np.stack([reference.encoded(face) for face in faces])
    assert made.dtype == np.float16 and made.shape == (2, 8, 32, 32)
    # a masked face is half constant, which amplifies float32's rounding: diffusers itself is 2.4e-4 from its own float64
    assert np.abs(made.astype(np.float32) - wanted.astype(np.float32)).max() <= 5e-4
    assert np.abs(wanted[:, :4].astype(np.float32) - wanted[:, 4:].astype(np.float32)).max() > 0.01  # masked differs
