"""Where avatars are kept: a folder and a bucket do the same, and orchestrators that share a bucket share the library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.avatars.avatar_folder import AvatarFolder
from orchestrator.avatars.avatar_record import AvatarRecord
from orchestrator.avatars.avatar_storage import AvatarStorage
from tests.fakes.stage import stage
from tests.orchestrator.routes.test_avatars import CLIP, DIGEST, made, settled

Open = Callable[[str], AvatarStorage]
"""Opens the storage that is tested, as another process would; the argument names its folder of copies."""
RECORD = AvatarRecord(avatar_id="ava_" + 24 * "a", key="ann", name="Ada", created_at=1.0)
LONG_AGO = 1e9


@pytest.fixture(params=["folder", "bucket"])
def open_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "folder":
        return lambda _: AvatarFolder(tmp_path / "shared")
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    from orchestrator.avatars.avatar_bucket import AvatarBucket

    url = request.getfixturevalue("bucket")
    return lambda name: AvatarBucket(url, AvatarFolder(tmp_path / name))


def stored(storage: AvatarStorage, data: bytes) -> str:
    incoming = storage.incoming()
    incoming.write(data[:5])
    incoming.write(data[5:])
    source, path = incoming.keep()
    incoming.drop()
    assert path.read_bytes() == data and incoming.size == len(data)
    return source


def test_records_clips_and_posters_are_found_by_another_process_and_deleted(open_storage: Open) -> None:
    ours, theirs = open_storage("ours"), open_storage("theirs")
    ours.make()
    theirs.make()
    assert (ours.records(), ours.read(RECORD.avatar_id), ours.poster(RECORD.avatar_id)) == ([], None, None)
    source = stored(ours, CLIP)
    assert source == "sha256:" + hashlib.sha256(CLIP).hexdigest()
    ours.write(RECORD)
    assert theirs.records() == [RECORD] == ours.records()
    theirs.write(RECORD.model_copy(update={"name": "Zoë"}))
    assert ours.records()[0].name == "Zoë"
    found = ours.read(RECORD.avatar_id)
    assert found is not None and found.name == "Zoë"
    ours.write_poster(RECORD.avatar_id, b"a poster")
    poster, clip = theirs.poster(RECORD.avatar_id), theirs.source(source)
    assert poster is not None and poster.read_bytes() == b"a poster"
    assert clip is not None and clip.read_bytes() == CLIP
    assert theirs.source("sha256:" + 64 * "0") is None
    theirs.delete(RECORD.avatar_id)
    theirs.delete(RECORD.avatar_id)
    assert ours.records() == [] and ours.read(RECORD.avatar_id) is None
    ours.write_poster(RECORD.avatar_id, b"late")
    assert theirs.poster(RECORD.avatar_id) is None
    theirs.remove_sources({source})
    theirs.remove_sources(set())
    third = open_storage("third")
    third.make()
    assert third.source(source) is None


def test_only_what_is_old_and_of_no_use_is_swept(open_storage: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage("ours")
    storage.make()
    used, unused = stored(storage, b"a used clip"), stored(storage, b"an unused clip")
    storage.sweep({used})
    assert storage.source(unused) is not None, "it may be about to be used"
    for source in (used, unused):
        path = storage.source(source)
        assert path is not None
        os.utime(path, (LONG_AGO, LONG_AGO))
    monkeypatch.setattr("orchestrator.avatars.avatar_folder.LEFT_S", -1.0)
    monkeypatch.setattr("orchestrator.avatars.avatar_bucket.LEFT_S", -1.0, raising=False)
    storage.sweep({used})
    assert storage.source(unused) is None and storage.source(used) is not None


def test_a_bucket_that_is_not_there_fails_as_a_disk_does(bucket: str, tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    from orchestrator.avatars.avatar_bucket import AvatarBucket

    with pytest.raises(OSError, match="bucket of avatars"):
        AvatarBucket(bucket.replace("bucket-", "none-"), AvatarFolder(tmp_path)).make()
    with pytest.raises(ValueError, match="no address"):
        AvatarBucket("s4://nowhere", AvatarFolder(tmp_path))


async def test_an_avatar_that_was_added_at_one_orchestrator_is_shown_by_another(bucket: str, tmp_path: Path) -> None:
    async with stage(avatars_url=bucket, avatars_dir=tmp_path / "one") as one:
        avatar_id = await made(one)
        assert (await settled(one, avatar_id))["state"] == "ready"
        poster = (await one.http.get(f"/avatars/{avatar_id}/poster.jpg")).content
        async with stage(avatars_url=bucket, avatars_dir=tmp_path / "other") as other:
            listed = (await other.http.get("/avatars")).json()["avatars"]
            assert [each["avatar_id"] for each in listed] == [avatar_id]
            assert (await other.http.get(f"/avatars/{avatar_id}/poster.jpg")).content == poster
            other.agent.avatars.needs_clips = True
            await other.start(avatar_id=avatar_id)
            assert other.agent.avatars.clips == {DIGEST: CLIP}, "its agent gets the clip"
