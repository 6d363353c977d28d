"""Downloads from a hub on loopback, through huggingface_hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", exc_type=ImportError)

from musetalk_agent.tools import fetch_models
from musetalk_agent.tools.fetch_models import FetchFailed, Transfer, from_hub
from musetalk_agent.weights import HubSource, Manifest, ModelFile, ModelStore
from tests.fakes.hub import COMMIT, serving_hub

BODY = bytes(range(256)) * 20_000
CONFIG = b'{"sample_size": 256}'
FILES = {"ann/net/folder/unet.pth": BODY, "ann/net/config.json": CONFIG, "bob/other/config.json": b"{}"}


def entry_of(name: str, repo: str, file: str, content: bytes | None = None) -> ModelFile:
    body = FILES[f"{repo}/{file}"] if content is None else content
    return ModelFile(
        name=name,
        group="test",
        source=HubSource(kind="hub", repo=repo, revision=COMMIT, file=file),
        size=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        licence="MIT",
        needed_by="a test",
    )


UNET = entry_of("v15/unet.pth", "ann/net", "folder/unet.pth")
FIRST = entry_of("a/config.json", "ann/net", "config.json")
SECOND = entry_of("b/config.json", "bob/other", "config.json")

StoreOf = Callable[..., ModelStore]


@pytest.fixture
def store_of(tmp_path: Path) -> StoreOf:
    return lambda *entries: ModelStore(tmp_path / "models", Manifest({entry.name: entry for entry in entries}))


def test_large_and_small_files_of_several_repositories(store_of: StoreOf) -> None:
    store = store_of(UNET, FIRST, SECOND)
    with serving_hub(FILES) as hub:
        assert fetch_models.fetch(store, ["test"], quiet=True, network=Transfer(hub.endpoint)) == 3
        asked = len(hub.asked)
        assert fetch_models.fetch(store, ["test"], quiet=True, network=Transfer(hub.endpoint)) == 0
        assert len(hub.asked) == asked
    assert store.path("v15/unet.pth").read_bytes() == BODY
    assert store.path("a/config.json").read_bytes() == CONFIG
    assert store.path("b/config.json").read_bytes() == b"{}"
    assert all(state.verified for state in store.state().values())
    resolve = f"/ann/net/resolve/{COMMIT}/folder/unet.pth"
    assert hub.asked[:3] == [
        ("HEAD", resolve, None),
        ("GET", resolve, None),
        ("GET", "/store/ann/net/folder/unet.pth", None),
    ]


def test_a_broken_connection_goes_on_where_it_broke(store_of: StoreOf) -> None:
    store = store_of(UNET)
    waits: list[float] = []
    with serving_hub(FILES) as hub:
        hub.break_after += [3_000_000, 1_000_000]
        fetch_models.fetch(store, ["test"], quiet=True, network=Transfer(hub.endpoint, pause=waits.append))
        assert hub.gets() == [None, "bytes=3000000-", "bytes=4000000-"]
    assert waits == [1, 2] and store.path("v15/unet.pth").read_bytes() == BODY


def test_a_second_run_goes_on_where_the_first_gave_up(store_of: StoreOf) -> None:
    store = store_of(UNET, FIRST)
    with serving_hub(FILES) as hub:
        hub.break_after += [2_000_000, 0, 0, 0, 0]
        with pytest.raises(FetchFailed, match=r"v15/unet\.pth could not be fetched.*go on where it stopped"):
            fetch_models.fetch(store, ["test"], quiet=True, network=Transfer(hub.endpoint, pause=lambda _: None))
        assert store.path("a/config.json"), "one file's failure must not keep the others away"
        fetch_models.fetch(
            ModelStore(store.directory, store.manifest), ["test"], quiet=True, network=Transfer(hub.endpoint)
        )
        assert hub.gets()[-1] == "bytes=2000000-"
    assert store.path("v15/unet.pth").read_bytes() == BODY


def test_the_bytes_of_a_bar_add_up_over_a_break(store_of: StoreOf) -> None:
    arrived: list[int] = []
    with serving_hub(FILES) as hub:
        hub.break_after.append(3_000_000)
        network = Transfer(hub.endpoint, pause=lambda _: None, progress=arrived.append)
        assert isinstance(UNET.source, HubSource)
        from_hub(store_of(UNET), UNET, UNET.source, network)
    assert sum(arrived) == len(BODY)


def test_a_partial_file_that_does_not_fit_is_thrown_away(store_of: StoreOf) -> None:
    unsized = FIRST.model_copy(update={"size": None, "sha256": None})
    store = store_of(unsized)
    waits: list[float] = []
    with serving_hub(FILES) as hub:
        network = Transfer(hub.endpoint, pause=waits.append)
        hub.break_after += [5, 0, 0, 0, 0]
        with pytest.raises(FetchFailed):
            fetch_models.fetch(store, ["test"], quiet=True, network=network)
        (part,) = (store.directory / ".cache" / "parts").iterdir()
        part.write_bytes(CONFIG + b"more")
        fetch_models.fetch(store, ["test"], quiet=True, network=network)
        assert hub.gets()[-2:] == [f"bytes={len(CONFIG) + 4}-", None]
    assert store.path("a/config.json").read_bytes() == CONFIG


def test_a_busy_hub_is_asked_again(store_of: StoreOf) -> None:
    waits: list[float] = []
    store = store_of(FIRST)
    with serving_hub(FILES) as hub:
        hub.refuse += [503, 429]
        fetch_models.fetch(store, ["test"], quiet=True, network=Transfer(hub.endpoint, pause=waits.append))
    assert waits == [1, 2] and store.state()["a/config.json"].verified


def test_what_the_hub_does_not_have_is_reported_at_once(store_of: StoreOf) -> None:
    gone = entry_of("v15/gone.pth", "ann/net", "gone.pth", b"x")
    waits: list[float] = []
    with serving_hub(FILES) as hub, pytest.raises(FetchFailed, match=r"v15/gone\.pth could not be fetched.*404"):
        fetch_models.fetch(store_of(gone), ["test"], quiet=True, network=Transfer(hub.endpoint, pause=waits.append))
    assert waits == []


def test_other_bytes_of_the_right_size_are_not_kept(store_of: StoreOf) -> None:
    wrong = entry_of("a/config.json", "ann/net", "config.json", bytes(len(CONFIG)))
    store = store_of(wrong)
    with serving_hub(FILES) as hub, pytest.raises(FetchFailed, match="sha256"):
        fetch_models.fetch(store, ["test"], quiet=True, network=Transfer(hub.endpoint))
    assert not store.state()["a/config.json"].exists


def test_an_unreachable_hub_is_waited_for_once(store_of: StoreOf) -> None:
    waits: list[float] = []
    with pytest.raises(FetchFailed) as reported:
        network = Transfer("http://127.0.0.1:1", pause=waits.append)
        fetch_models.fetch(store_of(FIRST, SECOND, UNET), ["test"], quiet=True, network=network)
    assert waits == [1, 2, 4, 8]
    assert [line.split()[0] for line in str(reported.value).splitlines()] == [
        "a/config.json",
        "b/config.json",
        "v15/unet.pth",
    ]
