"""Tiny random weights in upstream's files through the real loader, against the modules they came from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from musetalk_agent.errors import WeightsInvalid, WeightsMissing
from tests.fakes import weights
from tests.late import late_imports

with late_imports("torch", "diffusers", "transformers"):
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import WhisperConfig, WhisperModel

    from musetalk_agent.engines.musetalk import loading
    from tests.musetalk_agent.engines.musetalk.models import CPU


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights.write_models(tmp_path_factory.mktemp("models"), parsing=True, taesd=True)


@pytest.fixture
def models(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(written, tmp_path / "models"))


def fields(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def replace(path: Path, content: object) -> None:
    """Puts another file in a file's place; writing into one that is mapped would end the process."""
    path.unlink()
    torch.save(content, path)


def state(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


@pytest.mark.usefixtures("inference")
def test_the_unet_is_the_one_in_the_file(written: Path) -> None:
    torch.manual_seed(1)
    latents, audio = torch.randn(1, 8, 32, 32), torch.randn(1, 50, 384)
    plain = UNet2DConditionModel(**fields(weights.unet_config("tiny"))).eval()
    plain.load_state_dict(state(written / "musetalkV15" / "unet.pth"))
    loaded = loading.load_unet(written, CPU, torch.float32)
    made = loaded(latents, 0, encoder_hidden_states=audio).sample
    assert made.shape == (1, 4, 32, 32) and 0.1 < made.std() < 10
    assert torch.equal(made, plain(latents, 0, encoder_hidden_states=audio).sample)
    assert not loaded.training and not any(value.requires_grad for value in loaded.parameters())


@pytest.mark.usefixtures("inference")
def test_the_vae_is_the_one_in_the_file_whose_attention_has_its_old_names(written: Path) -> None:
    torch.manual_seed(2)
    picture = torch.rand(1, 3, 256, 256) * 2 - 1
    old = state(written / "sd-vae" / "diffusion_pytorch_model.bin")
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in old
    today = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    renamed = {}
    for name, value in old.items():
        *stem, last, kind = name.split(".")
        renamed[".".join((*stem, today[last] if "attentions" in name and last in today else last, kind))] = value
    plain = AutoencoderKL(**fields(weights.vae_config("tiny"))).eval()
    plain.load_state_dict(renamed)
    loaded = loading.load_vae(written, CPU, torch.float32)
    latents = loaded.encode(picture).latent_dist.mode()
    assert latents.shape == (1, 4, 32, 32) and loaded.config.scaling_factor == 0.18215
    assert torch.equal(latents, plain.encode(picture).latent_dist.mode())
    assert torch.equal(loaded.decode(latents).sample, plain.decode(latents).sample)


@pytest.mark.usefixtures("inference")
def test_the_encoder_is_the_one_in_the_file_without_its_decoder(written: Path) -> None:
    torch.manual_seed(3)
    mel = torch.randn(1, 80, 3000)
    whole = state(written / "whisper" / "pytorch_model.bin")
    assert any(name.startswith("model.decoder.") for name in whole)
    plain = WhisperModel(WhisperConfig(**weights.whisper_config("tiny"))).eval()
    plain.load_state_dict({name.removeprefix("model."): value for name, value in whole.items()})
    loaded = loading.load_whisper(written, CPU, torch.float32)
    ours = loaded(mel, output_hidden_states=True).hidden_states
    theirs = plain.encoder(mel, output_hidden_states=True).hidden_states
    assert len(ours) == 5 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.usefixtures("inference")
def test_taesd_is_the_one_in_the_file(written: Path) -> None:
    latents = torch.randn(1, 4, 32, 32)
    plain = AutoencoderTiny.from_pretrained(written / "taesd", low_cpu_mem_usage=False).eval()
    loaded = loading.load_taesd(written, CPU, torch.float32)
    assert loaded is not None and torch.equal(loaded.decode(latents).sample, plain.decode(latents).sample)


@pytest.mark.usefixtures("inference")
def test_face_parsing_loads_every_key_of_an_old_pickle(written: Path) -> None:
    loaded = loading.load_parsing(written, CPU, torch.float32)
    assert loaded is not None
    old = state(written / "face-parse-bisent" / "79999_iter.pth")
    assert {name: value.shape for name, value in loaded.state_dict().items()} == dict(weights.bisenet_shapes())
    assert all(torch.equal(value, old[name]) for name, value in loaded.state_dict().items())
    assert loaded(torch.rand(1, 3, 64, 64)).shape == (1, 19, 64, 64)


def test_optional_networks_may_be_absent(tmp_path: Path) -> None:
    assert loading.load_parsing(tmp_path, CPU, torch.float32) is None
    assert loading.load_taesd(tmp_path, CPU, torch.float32) is None


def test_precision(written: Path) -> None:
    half = loading.load_unet(written, CPU, torch.float16)
    assert {value.dtype for value in half.parameters()} == {torch.float16}
    original = state(written / "musetalkV15" / "unet.pth")["conv_in.weight"]
    assert torch.equal(half.conv_in.weight, original.half())
    parsing = loading.load_parsing(written, CPU, torch.bfloat16)
    assert parsing is not None and parsing.cp.resnet.bn1.num_batches_tracked.dtype == torch.int64


def test_weights_in_their_own_precision_stay_mapped(written: Path) -> None:
    loaded = loading.load_unet(written, CPU, torch.float32)
    assert "unet.pth" in Path("/proc/self/maps").read_text(), "the file is not mapped into memory"
    loaded.conv_in.weight.zero_()  # a private mapping: the file must not change
    assert state(written / "musetalkV15" / "unet.pth")["conv_in.weight"].any()


def test_the_vaes_older_folder_and_safetensors(models: Path) -> None:
    (models / "sd-vae").rename(models / "sd-vae-ft-mse")
    folder = models / "sd-vae-ft-mse"
    first = loading.load_vae(models, CPU, torch.float32)
    save_file(state(folder / "diffusion_pytorch_model.bin"), folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.bin").unlink()
    second = loading.load_vae(models, CPU, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_attention_kept_as_convolutions_and_in_todays_spelling(models: Path) -> None:
    path = models / "sd-vae" / "diffusion_pytorch_model.bin"
    first = loading.load_vae(models, CPU, torch.float32)
    made = first.state_dict()
    query = "encoder.mid_block.attentions.0.to_q.weight"
    made[query] = made[query][:, :, None, None].clone()
    replace(path, made)
    second = loading.load_vae(models, CPU, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_checkpoint_of_whispers_body(models: Path) -> None:
    path = models / "whisper" / "pytorch_model.bin"
    replace(path, {name.removeprefix("model."): value for name, value in state(path).items()})
    assert loading.load_whisper(models, CPU, torch.float32).conv1.weight.shape == (384, 80, 3)


def test_a_difference_is_readable(models: Path) -> None:
    path = models / "musetalkV15" / "unet.pth"
    spoiled = state(path)
    for name in [name for name in spoiled if name.startswith("time_embedding")]:
        del spoiled[name]
    spoiled["conv_in.weight"] = spoiled["conv_in.weight"][:, :4].clone()
    spoiled["extra.weight"] = torch.zeros(1)
    replace(path, spoiled)
    with pytest.raises(WeightsInvalid) as reported:
        loading.load_unet(models, CPU, torch.float32)
    text = str(reported.value)
    assert "musetalkV15/unet.pth does not fit the model its configuration describes" in text
    assert (
        "4 missing: time_embedding.linear_1.weight, time_embedding.linear_1.bias, time_embedding.linear_2.weight, …"
        in text
    )
    assert "1 unexpected: extra.weight" in text
    assert "1 of another shape: conv_in.weight is [32, 4, 3, 3] instead of [32, 8, 3, 3]" in text


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("the file's code ran",))


def test_code_in_a_file_is_not_run(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"conv_in.weight": Trap()}, models / "musetalkV15" / "unet.pth")
    with pytest.raises(WeightsInvalid, match="holds more than tensors"):
        loading.load_unet(models, CPU, torch.float32)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "reported"),
    [
        (lambda whole: whole[: len(whole) // 2], "damaged or cut off|holds more than tensors, or is damaged"),
        (lambda whole: b"", "damaged or cut off|holds more than tensors, or is damaged"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "Git LFS pointer"),
        (lambda whole: b"<html>sign in</html>", "damaged"),
    ],
)
def test_files_that_are_not_whole(models: Path, spoil: Any, reported: str) -> None:
    path = models / "musetalkV15" / "unet.pth"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(WeightsInvalid, match=reported):
        loading.load_unet(models, CPU, torch.float32)


def test_a_cut_safetensors_file(models: Path) -> None:
    path = models / "taesd" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsInvalid, match=r"taesd/diffusion_pytorch_model\.safetensors is damaged or cut off"):
        loading.load_taesd(models, CPU, torch.float32)


def test_what_is_not_a_state_dict(models: Path) -> None:
    torch.save({"state_dict": {}}, models / "musetalkV15" / "unet.pth")
    with pytest.raises(WeightsInvalid, match="not a bare state dict"):
        loading.load_unet(models, CPU, torch.float32)


def test_a_missing_file_is_reported_with_the_command(models: Path) -> None:
    (models / "whisper" / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsMissing, match=r"whisper/pytorch_model\.bin is missing.*fetch-models musetalk"):
        loading.load_whisper(models, CPU, torch.float32)


def test_the_published_architecture(tmp_path: Path) -> None:
    """Keys, shapes and counts of the real thing, without its 3.9 GB."""
    for name, content in (
        ("musetalkV15/musetalk.json", weights.unet_config("full")),
        ("sd-vae/config.json", weights.vae_config("full")),
        ("whisper/config.json", weights.whisper_config("full")),
    ):
        weights.write_config(tmp_path / name, content)
    unet, vae, whisper = (build(tmp_path) for build in loading.BUILDERS.values())
    assert count(unet) == 849_947_844
    assert count(vae.decoder) == 49_490_179 and count(vae.encoder) == 34_163_592
    assert count(whisper) == 8_208_384
    shapes = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    assert shapes["conv_in.weight"] == (320, 8, 3, 3) and shapes["conv_out.weight"] == (4, 320, 3, 3)
    assert shapes["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"] == (320, 384)
    assert shapes["mid_block.attentions.0.proj_in.weight"] == (1280, 1280, 1, 1)
    assert unet.config.attention_head_dim == 8 and unet.mid_block.attentions[0].transformer_blocks[0].attn1.heads == 8
    assert all(value.is_meta for module in (unet, vae, whisper) for value in module.parameters())


def count(module: Any) -> int:
    return sum(value.numel() for value in module.parameters())
