from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from musetalk_agent.engines.musetalk import weights_files
from musetalk_agent.engines.musetalk.weights_files import fingerprint, notes_of, problem_of
from musetalk_agent.errors import WeightsInvalid, WeightsMissing
from musetalk_agent.tools import convert_weights
from musetalk_agent.tools.convert_weights import convert
from musetalk_agent.weights import Manifest, ModelStore, sha256_of
from tests.fakes import weights
from tests.late import late_imports

with late_imports("torch", "diffusers", "transformers"):
    import torch
    from safetensors.torch import save_file

    from musetalk_agent.engines.musetalk import loading
    from tests.musetalk_agent.engines.musetalk.models import CPU

COPIES = (
    "musetalkV15/unet.fp16.safetensors",
    "sd-vae/diffusion_pytorch_model.fp16.safetensors",
    "whisper/pytorch_model.fp16.safetensors",
)
ORIGINALS = ("musetalkV15/unet.pth", "sd-vae/diffusion_pytorch_model.bin", "whisper/pytorch_model.bin")
LOADERS = ("load_unet", "load_vae", "load_whisper")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = weights.write_models(tmp_path_factory.mktemp("models"))
    assert run("--models-dir", str(folder), "--quiet") == 0
    return folder


@pytest.fixture
def models(written: Path, tmp_path: Path) -> Path:
    """Weights and their fp16 copies, which a test may spoil."""
    return Path(shutil.copytree(written, tmp_path / "models"))


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    convert_weights.add_arguments(parser)
    return convert_weights.run(parser.parse_args(list(argv)))


def used(models: Path, part: weights_files.Part, half: weights_files.Half | None) -> str:
    found = weights_files.find(models, part, half)
    assert found is not None
    return str(found.path.relative_to(models))


def test_copies_hold_the_halved_weights_under_todays_names(models: Path) -> None:
    original = torch.load(models / ORIGINALS[1], weights_only=True)
    with safe_open(models / COPIES[1], "pt") as copy:
        assert len(copy.keys()) == len(original)
        name = "decoder.mid_block.attentions.0.to_out.0.weight"
        assert torch.equal(copy.get_tensor(name), original[name.replace("to_out.0", "proj_attn")].half())
        assert copy.metadata()["source_sha256"] == sha256_of(models / ORIGINALS[1])
    with safe_open(models / COPIES[2], "pt") as copy:
        assert not any("decoder" in name for name in copy.keys())
    assert (models / COPIES[0]).stat().st_size < 0.52 * (models / ORIGINALS[0]).stat().st_size


def test_the_copy_is_loaded_mapped_and_equal_to_the_converted_original(models: Path) -> None:
    for load, copy in zip(LOADERS, COPIES, strict=True):
        fast = getattr(loading, load)(models, CPU, torch.float16)
        assert copy.split("/")[1] in Path("/proc/self/maps").read_text()
        (models / copy).unlink()
        slow = getattr(loading, load)(models, CPU, torch.float16)
        for a, b in zip(fast.parameters(), slow.parameters(), strict=True):
            assert a.dtype == b.dtype == torch.float16 and torch.equal(a, b)


def test_each_precision_takes_its_own_file(models: Path) -> None:
    assert used(models, "unet", "fp16") == COPIES[0]
    assert used(models, "unet", "bf16") == used(models, "unet", None) == ORIGINALS[0]
    convert(models, "unet", "bf16", quiet=True)
    assert used(models, "unet", "bf16") == "musetalkV15/unet.bf16.safetensors"
    assert loading.load_unet(models, CPU, torch.bfloat16).conv_in.weight.dtype == torch.bfloat16


def test_copies_suffice_alone(models: Path) -> None:
    for name in ORIGINALS:
        (models / name).unlink()
    assert weights_files.musetalk_state(ModelStore(models, Manifest.load())) == []
    for load in LOADERS:
        assert {value.dtype for value in getattr(loading, load)(models, CPU, torch.float32).parameters()} == {
            torch.float32
        }


def test_a_second_run_writes_nothing(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [(models / name).stat().st_mtime_ns for name in COPIES]
    assert run("--models-dir", str(models), "--quiet") == 0
    assert [(models / name).stat().st_mtime_ns for name in COPIES] == before
    assert capsys.readouterr().out.count("is there and fits") == 3


def test_a_copy_of_other_weights_is_stale(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = models / ORIGINALS[0]
    stat = original.stat()
    state = torch.load(original, weights_only=True)
    state["conv_in.bias"] += 1
    original.unlink()
    torch.save(state, original)
    os.utime(original, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert original.stat().st_size == stat.st_size, "the size alone must not tell them apart here"
    with caplog.at_level(logging.WARNING):
        assert used(models, "unet", "fp16") == ORIGINALS[0]
    assert "a converted weight file is not used" in caplog.text
    assert convert(models, "unet", "fp16", quiet=True).startswith(f"{COPIES[0]} written")
    assert torch.equal(loading.load_unet(models, CPU, torch.float16).conv_in.bias, state["conv_in.bias"].half())


@pytest.mark.parametrize(
    ("spoil", "reported"),
    [
        (lambda path: os.truncate(path, path.stat().st_size - 1), "bytes instead of"),
        (lambda path: os.truncate(path, 4), "no safetensors header"),
        (lambda path: save_file({"a": torch.zeros(2)}, path), "not written by convert-weights"),
        (lambda path: path.write_bytes(b"\x04\0\0\0\0\0\0\0nope"), "header is broken"),
        (lambda path: path.write_bytes(b"\x04\0\0\0\0\0\0\0[12]"), "header is broken"),
    ],
)
def test_what_is_no_copy_is_passed_over(models: Path, spoil: Callable[[Path], object], reported: str) -> None:
    path = models / COPIES[0]
    assert problem_of(path, None) is None and notes_of(path)["source"] == "unet.pth"
    spoil(path)
    problem = problem_of(path, None)
    assert problem is not None and reported in problem
    assert used(models, "unet", "fp16") == ORIGINALS[0]


def test_numbers_beyond_the_precision_are_refused(models: Path) -> None:
    (models / COPIES[0]).unlink()
    original = models / ORIGINALS[0]
    state = torch.load(original, weights_only=True)
    state["conv_out.bias"][0] = 1e6
    original.unlink()
    torch.save(state, original)
    with pytest.raises(WeightsInvalid, match=r"conv_out\.bias has numbers that fp16 cannot hold; try --dtype bf16"):
        convert(models, "unet", "fp16", quiet=True)
    assert sorted(path.name for path in original.parent.iterdir()) == ["musetalk.json", "unet.pth"]
    convert(models, "unet", "bf16", quiet=True)


def test_weights_that_do_not_fit_are_not_converted(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / ORIGINALS[0]).unlink()
    torch.save({"conv_in.bias": torch.zeros(32)}, models / ORIGINALS[0])
    assert run("--models-dir", str(models), "--quiet") == 1
    assert "does not fit the model its configuration describes" in capsys.readouterr().err


def test_nothing_to_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WeightsMissing, match="fetch-models musetalk"):
        convert(tmp_path, "unet", "fp16")
    assert run("--models-dir", str(tmp_path)) == 1
    assert "musetalkV15/unet.pth is missing" in capsys.readouterr().err


def test_a_fingerprint_of_a_small_file_covers_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    prints = set()
    for content in (b"", b"a", b"b", b"ab"):
        path.write_bytes(content)
        prints.add(fingerprint(path))
    assert len(prints) == 4


def test_copies_are_shown_with_what_is_known_of_them(models: Path) -> None:
    shown = weights_files.copies_state(models)
    assert sorted(shown) == sorted(COPIES) and all(state.verified for state in shown.values())
    assert shown[COPIES[0]].bytes == (models / COPIES[0]).stat().st_size
    os.truncate(models / COPIES[0], 100)
    assert weights_files.copies_state(models)[COPIES[0]].verified is False
