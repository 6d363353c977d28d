"""The parsing network: its keys, its shape, what it is shown."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.late import late_imports

with late_imports("torch"):
    import torch

    from musetalk_agent.engines.musetalk.parsing import BiSeNet, Parser


def test_the_published_weights_have_so_many_parameters_under_these_names() -> None:
    with torch.device("meta"):
        state = BiSeNet().state_dict()
    floats = sum(v.numel() for v in state.values() if v.dtype == torch.float32)
    # 79999_iter.pth has 53,289,463 bytes: four to a float, 8 to a batch count, the rest is names and zip.
    assert 0 < 53_289_463 - 4 * floats < 100_000
    assert state["cp.resnet.conv1.weight"].shape == (64, 3, 7, 7)
    assert state["cp.resnet.layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert state["cp.arm16.conv.conv.weight"].shape == (128, 256, 3, 3)
    assert state["cp.arm32.bn_atten.running_var"].shape == (128,)
    assert state["cp.conv_avg.conv.weight"].shape == (128, 512, 1, 1)
    assert state["ffm.convblk.conv.weight"].shape == (256, 256, 1, 1)
    assert state["ffm.conv1.weight"].shape == (64, 256, 1, 1)
    assert state["conv_out.conv_out.weight"].shape == (19, 256, 1, 1)
    assert state["conv_out16.conv.conv.weight"].shape == (64, 128, 3, 3)
    assert state["conv_out32.conv_out.weight"].shape == (19, 64, 1, 1)
    assert not any(name.startswith("cp.resnet.fc") for name in state)


def test_a_crop_is_shown_to_the_network_as_upstream_shows_it() -> None:
    seen = []

    class Spy(BiSeNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return torch.nn.functional.one_hot((x[:, 0] > 0).long(), 19).permute(0, 3, 1, 2).float()

    crop = np.random.default_rng(0).integers(0, 256, (333, 333, 3), np.uint8)
    classes = Parser(Spy(width=8))(crop[None])
    rgb = np.array(Image.fromarray(crop[..., ::-1]).resize((512, 512), Image.Resampling.BILINEAR))
    theirs = (
        torch.from_numpy(rgb.transpose(2, 0, 1).copy()).float() / 255
        - torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    ) / (torch.tensor([0.229, 0.224, 0.225])[:, None, None])
    assert torch.equal(seen[0][0], theirs)
    assert classes.shape == (1, 512, 512) and classes.dtype == np.uint8
    assert np.array_equal(classes[0], (theirs[0] > 0).numpy().astype(np.uint8))


def test_crops_parsed_together_and_alone_have_the_same_classes() -> None:
    torch.manual_seed(0)
    parser = Parser(BiSeNet(width=8))
    crops = np.random.default_rng(1).integers(0, 256, (2, 96, 96, 3), np.uint8)
    together = parser(crops)
    assert len(np.unique(together)) > 1
    assert (together[1] == parser(crops[1:])[0]).mean() > 0.999  # ties may fall either way
