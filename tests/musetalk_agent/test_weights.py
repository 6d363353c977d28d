from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from musetalk_agent.errors import WeightsMissing
from musetalk_agent.weights import LEDGER, HubSource, Manifest, ModelStore

BODY = b"weights"
ENTRY = """
schema = 1
[[file]]
name = "{name}"
group = "test"
source = {{ kind = "url", url = "http://127.0.0.1:1/a" }}
size = 7
sha256 = "{digest}"
licence = "MIT"
needed_by = "a test"
"""


def manifest(tmp_path: Path, name: str = "net/a.bin", digest: str = hashlib.sha256(BODY).hexdigest()) -> Manifest:
    path = tmp_path / "manifest.toml"
    path.write_text(ENTRY.format(name=name, digest=digest))
    return Manifest.load(path)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    made = ModelStore(tmp_path / "models", manifest(tmp_path))
    (made.directory / "net").mkdir(parents=True)
    return made


def test_the_shipped_manifest() -> None:
    shipped = Manifest.load()
    assert shipped.groups == ["face", "musetalk", "parsing", "fast", "syncnet", "identity", "restore"]
    assert all(entry.sha256 and entry.size for entry in shipped.entries.values())
    assert shipped.entries["musetalkV15/unet.pth"].size == 3_400_074_924
    assert all(entry.licence and entry.needed_by for entry in shipped.entries.values())


def test_hub_files_are_pinned_to_a_commit() -> None:
    for entry in Manifest.load().entries.values():
        assert not isinstance(entry.source, HubSource) or len(entry.source.revision) == 40


def test_the_licence_that_forbids_business_is_not_in_the_required_group() -> None:
    groups = {entry.group for entry in Manifest.load().entries.values() if "non-commercial" in entry.licence}
    assert groups == {"parsing"}


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "a\\\\b"])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leaves the models folder"):
        manifest(tmp_path, name)


def test_other_places_stay_inside_too(tmp_path: Path) -> None:
    path = tmp_path / "manifest.toml"
    path.write_text(ENTRY.format(name="a", digest="0" * 64) + 'also = ["../a"]')
    with pytest.raises(ValueError, match="leaves the models folder"):
        Manifest.load(path)


def test_a_file_listed_twice(tmp_path: Path) -> None:
    path = tmp_path / "manifest.toml"
    entry = ENTRY.format(name="a", digest="0" * 64)
    path.write_text(entry + entry.replace("schema = 1", ""))
    with pytest.raises(ValueError, match="twice"):
        Manifest.load(path)


def test_missing_wrong_size_and_unknown_are_reported_with_the_command(store: ModelStore) -> None:
    with pytest.raises(WeightsMissing, match=r"net/a\.bin is missing.*fetch-models test"):
        store.path("net/a.bin")
    (store.directory / "net/a.bin").write_bytes(b"short")
    with pytest.raises(WeightsMissing, match="5 bytes instead of 7"):
        store.path("net/a.bin")
    with pytest.raises(WeightsMissing, match="not listed"):
        store.path("net/b.bin")


def test_state_hashes_nothing_and_remembers_what_was_verified(store: ModelStore) -> None:
    file = store.directory / "net/a.bin"
    assert not store.state()["net/a.bin"].exists
    file.write_bytes(BODY)
    assert (store.state()["net/a.bin"].bytes, store.state()["net/a.bin"].verified) == (7, None)
    assert store.verify("net/a.bin") is True
    assert ModelStore(store.directory, store.manifest).state()["net/a.bin"].verified is True
    assert store.path("net/a.bin") == file


def test_a_changed_file_is_hashed_again(store: ModelStore) -> None:
    file = store.directory / "net/a.bin"
    file.write_bytes(BODY)
    assert store.verify("net/a.bin")
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(1, 1))
    assert store.state()["net/a.bin"].verified is None
    assert store.verify("net/a.bin") is False


def test_a_garbled_ledger_is_no_ledger(store: ModelStore) -> None:
    (store.directory / "net/a.bin").write_bytes(BODY)
    (store.directory / LEDGER).parent.mkdir()
    (store.directory / LEDGER).write_text("[1, 2")
    assert store.verify("net/a.bin") is True


def test_the_older_name_of_a_folder_does_as_well(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, Manifest.load())
    name, older = "sd-vae/config.json", tmp_path / "sd-vae-ft-mse" / "config.json"
    assert store.location(name) == tmp_path / name
    older.parent.mkdir()
    older.write_bytes(b"{" + b" " * 545 + b"}")
    assert store.path(name) == older and store.state()[name].bytes == 547
    (tmp_path / "sd-vae").mkdir()
    (tmp_path / name).write_bytes(b"{}")
    assert store.location(name) == tmp_path / name


def test_a_right_file_is_accepted_and_a_wrong_one_left(store: ModelStore) -> None:
    made = store.directory / "made"
    made.write_bytes(b"WEIGHTS")
    assert not store.accept("net/a.bin", made) and made.exists()
    made.write_bytes(BODY)
    assert store.accept("net/a.bin", made) and not made.exists()
    assert store.state()["net/a.bin"].verified is True


def test_hashing_tells_its_progress(store: ModelStore) -> None:
    (store.directory / "net/a.bin").write_bytes(BODY)
    done: list[int] = []
    assert store.verify("net/a.bin", done.append) and sum(done) == len(BODY)
