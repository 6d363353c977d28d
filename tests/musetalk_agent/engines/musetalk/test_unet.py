"""The UNet with its time folded away, beside diffusers called plainly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.weights import write_models
from tests.late import late_imports

with late_imports("torch", "diffusers"):
    import torch

    from musetalk_agent.engines.musetalk.loading import load_unet
    from musetalk_agent.engines.musetalk.network import FoldedUNet
    from tests.musetalk_agent.engines.musetalk.models import CPU, inputs, plain
    from tests.reference.network import position_table


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def test_equal_to_the_unet_called_plainly_at_t_0(models: Path) -> None:
    audio, latents = inputs(2)
    wanted = torch.stack([plain(models).predicted(a, b) for a, b in zip(audio, latents, strict=True)])
    with torch.inference_mode():
        made = FoldedUNet(load_unet(models, CPU, torch.float32))(latents.float(), audio + position_table())
    assert wanted.std() > 0.1
    assert (made - wanted).abs().max() < 1e-5


def test_the_time_it_folds_matters(models: Path) -> None:
    """Guards the test above: without the embedding the output is another one."""
    audio, latents = inputs(1)
    unet = load_unet(models, CPU, torch.float32)
    for module in unet.modules():
        projection = getattr(module, "time_emb_proj", None)
        if projection is not None:
            projection.weight = torch.nn.Parameter(torch.zeros_like(projection.weight), requires_grad=False)
    with torch.inference_mode():
        made = FoldedUNet(unet)(latents.float(), audio + position_table())
    assert (made[0] - plain(models).predicted(audio[0], latents[0])).abs().max() > 1e-3


def test_weights_mapped_from_a_file_are_not_written_to(models: Path) -> None:
    unet = load_unet(models, CPU, torch.float32)
    name = "down_blocks.0.resnets.0.conv1.bias"
    before = unet.get_parameter(name)
    kept = before.clone()
    FoldedUNet(unet)
    assert torch.equal(before, kept)
    assert not torch.equal(unet.get_parameter(name), kept)
    assert not [key for key in unet.state_dict() if "time_" in key]


def test_a_frame_does_not_depend_on_its_batch(models: Path) -> None:
    audio, latents = inputs(5)
    audio += position_table()
    folded = FoldedUNet(load_unet(models, CPU, torch.float32))
    with torch.inference_mode():
        together = folded(latents.float(), audio)
        alone = torch.cat([folded(latents[i : i + 1].float(), audio[i : i + 1]) for i in range(5)])
    assert (together - alone).abs().max() < 1e-5
