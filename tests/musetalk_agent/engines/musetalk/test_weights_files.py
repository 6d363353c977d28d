from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from musetalk_agent.engines.musetalk import weights_files
from musetalk_agent.engines.musetalk.weights_files import find, musetalk_state, vae_config_path
from musetalk_agent.weights import Manifest, ModelStore

REQUIRED = [
    "musetalkV15/musetalk.json",
    "musetalkV15/unet.pth",
    "sd-vae/config.json",
    "sd-vae/diffusion_pytorch_model.bin",
    "whisper/config.json",
    "whisper/pytorch_model.bin",
]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path, Manifest.load())


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")


def test_what_is_missing_is_named_as_in_the_manifest(store: ModelStore) -> None:
    assert musetalk_state(store) == REQUIRED
    assert set(REQUIRED) < set(store.manifest.entries)
    touch(store.directory, *REQUIRED)
    assert musetalk_state(store) == []
    (store.directory / "whisper" / "config.json").unlink()
    assert musetalk_state(store) == ["whisper/config.json"]


def test_the_older_folder_and_other_formats_do_as_well(store: ModelStore) -> None:
    touch(store.directory, *REQUIRED)
    (store.directory / "sd-vae").rename(store.directory / "sd-vae-ft-mse")
    assert musetalk_state(store) == []
    assert vae_config_path(store.directory) == store.directory / "sd-vae-ft-mse" / "config.json"
    (store.directory / "whisper" / "pytorch_model.bin").rename(store.directory / "whisper" / "model.safetensors")
    assert musetalk_state(store) == []


def test_a_file_that_is_no_copy_stands_for_nothing(store: ModelStore) -> None:
    touch(store.directory, *REQUIRED, "musetalkV15/unet.fp16.safetensors")
    (store.directory / "musetalkV15" / "unet.pth").unlink()
    assert musetalk_state(store) == ["musetalkV15/unet.pth"]
    assert find(store.directory, "unet", "fp16") is None


def test_asking_needs_no_torch() -> None:
    """/debug and the choice of an engine ask on machines without the extra."""
    code = (
        "import sys; from musetalk_agent.engines.musetalk import config, weights_files; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'transformers', 'safetensors')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_line_needs_no_torch() -> None:
    code = (
        "import sys; from musetalk_agent.tools import convert_weights, fetch_models; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'transformers', 'huggingface_hub')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_is_sampled_once_until_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "unet.pth"
    path.write_bytes(b"a" * 200_000)
    first = weights_files.fingerprint(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *_, **__: pytest.fail("it was read again"))
        assert weights_files.fingerprint(path) == first
    other = tmp_path / "new"
    other.write_bytes(b"b" * 200_000)
    other.replace(path)
    assert weights_files.fingerprint(path) != first


def test_what_lies_in_the_models_folder_shows_when_something_came(tmp_path: Path) -> None:
    (tmp_path / "taesd").mkdir()
    empty = weights_files.files_state(tmp_path)
    (tmp_path / "taesd" / "config.json").write_text("{}")
    assert empty == () and [name for name, _, _ in weights_files.files_state(tmp_path)] == ["taesd/config.json"]
    assert weights_files.files_state(tmp_path / "none") == ()
