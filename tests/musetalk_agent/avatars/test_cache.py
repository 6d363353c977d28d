"""The cache's folder: replaced whole, shared by processes, emptied of the longest unused, and never of what is in use."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.avatars.bundle import HEAD_FILE, DamagedBundle
from musetalk_agent.avatars.cache import AvatarCache
from musetalk_agent.errors import DiskFull
from tests.musetalk_agent.avatars.test_bundle import KEY, written

ROOM = 1 << 20


def a_bundle(cache: AvatarCache, key: str = KEY, padding: int = 0) -> Path:
    """A whole bundle in a part of its own, made larger by a file that an engine might have left."""
    part = cache.part()
    written(part)
    head = part / HEAD_FILE
    head.write_text(head.read_text().replace(KEY, key))
    if padding:
        (part / "engines" / "a").mkdir(parents=True)
        (part / "engines" / "a" / "artefacts").write_bytes(bytes(padding))
    return part


def there(folder: Path, kind: str) -> set[str]:
    return {path.name for path in (folder / kind).iterdir()}


def used(folder: Path, key: str, moment: float) -> None:
    os.utime(folder / "bundles" / key / HEAD_FILE, (moment, moment))


def test_a_part_is_nobody_else_s_and_is_gone_when_it_is_discarded(tmp_path: Path) -> None:
    cache = AvatarCache(tmp_path, ROOM)
    parts = [cache.part() for _ in range(3)]
    assert len(set(parts)) == 3 and all(part.is_dir() and not list(part.iterdir()) for part in parts)
    for part in parts:
        (part / "half").write_bytes(b"x")
        cache.discard_part(part)
        cache.discard_part(part)
    assert there(tmp_path, "parts") == set()


def test_a_bundle_is_opened_under_its_key_only(tmp_path: Path) -> None:
    cache = AvatarCache(tmp_path, ROOM)
    kept = cache.keep_bundle(a_bundle(cache), KEY)
    found = cache.bundle(KEY)
    assert found is not None and np.array_equal(found.frames, kept.frames)
    assert cache.bundle("other") is None and there(tmp_path, "parts") == set()


def test_another_process_finds_what_this_one_made(tmp_path: Path) -> None:
    one, other = AvatarCache(tmp_path, ROOM), AvatarCache(tmp_path, ROOM)
    one.keep_bundle(a_bundle(one), KEY)
    assert other.bundle(KEY) is not None


def test_of_two_that_make_the_same_the_first_is_kept(tmp_path: Path) -> None:
    one, other = AvatarCache(tmp_path, ROOM), AvatarCache(tmp_path, ROOM)
    first, second = a_bundle(one), a_bundle(other, padding=10)
    one.keep_bundle(first, KEY)
    assert other.keep_bundle(second, KEY).path == tmp_path / "bundles" / KEY
    assert not (tmp_path / "bundles" / KEY / "engines").exists()
    other.discard_part(second)
    assert there(tmp_path, "parts") == set()


def test_what_was_made_takes_the_place_of_what_cannot_be_read(tmp_path: Path) -> None:
    cache = AvatarCache(tmp_path, ROOM)
    (tmp_path / "bundles" / KEY).mkdir()
    (tmp_path / "bundles" / KEY / HEAD_FILE).write_text("{")
    cache.keep_bundle(a_bundle(cache), KEY)
    assert cache.bundle(KEY) is not None and there(tmp_path, "parts") == set()


def test_many_threads_that_make_the_same_all_get_it(tmp_path: Path) -> None:
    cache, found, errors = AvatarCache(tmp_path, ROOM), list[Path](), list[Exception]()
    together = threading.Barrier(6)

    def make() -> None:
        part = a_bundle(cache)
        together.wait()
        try:
            found.append(cache.keep_bundle(part, KEY).path)
        except (OSError, DamagedBundle) as error:
            errors.append(error)
        cache.discard_part(part)

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and set(found) == {tmp_path / "bundles" / KEY} and len(found) == 6
    assert there(tmp_path, "parts") == set()


def test_a_bundle_that_cannot_be_read_right_after_it_was_written_is_an_error(tmp_path: Path) -> None:
    cache = AvatarCache(tmp_path, ROOM)
    part = a_bundle(cache)
    (part / "frames.npy").write_bytes(b"")
    with pytest.raises(DamagedBundle):
        cache.keep_bundle(part, KEY)


def half_a_head(folder: Path) -> None:
    (folder / HEAD_FILE).write_bytes((folder / HEAD_FILE).read_bytes()[:20])


def no_head(folder: Path) -> None:
    (folder / HEAD_FILE).unlink()


def no_frames(folder: Path) -> None:
    (folder / "frames.npy").unlink()


@pytest.mark.parametrize("damage", [half_a_head, no_head, no_frames])
def test_a_half_written_bundle_is_none_and_makes_room(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    cache = AvatarCache(tmp_path, ROOM)
    cache.keep_bundle(a_bundle(cache), KEY)
    damage(tmp_path / "bundles" / KEY)
    assert cache.bundle(KEY) is None
    assert there(tmp_path, "bundles") == set() == there(tmp_path, "parts")


def size_of(folder: Path, key: str) -> int:
    return sum(file.stat().st_size for file in (folder / "bundles" / key).rglob("*") if file.is_file())


def full_of(folder: Path, keys: str) -> AvatarCache:
    """A cache that holds these bundles, used one second after the other, and has room for them and no more."""
    roomy = AvatarCache(folder, 1 << 30)
    for moment, key in enumerate(keys, 1):
        roomy.keep_bundle(a_bundle(roomy, key), key)
        used(folder, key, moment)
    each = size_of(folder, keys[0])
    gc.collect()
    return AvatarCache(folder, len(keys) * each * 4 // 3 + each // 2)


def test_the_longest_unused_goes_for_a_new_one(tmp_path: Path) -> None:
    cache = full_of(tmp_path, "abc")
    cache.keep_bundle(a_bundle(cache, "d"), "d")
    assert there(tmp_path, "bundles") == {"b", "c", "d"}


def test_being_asked_for_counts_as_use(tmp_path: Path) -> None:
    cache = full_of(tmp_path, "abc")
    assert cache.bundle("a") is not None
    cache.keep_bundle(a_bundle(cache, "d"), "d")
    assert there(tmp_path, "bundles") == {"a", "c", "d"}


def test_what_is_held_stays_until_nobody_holds_it(tmp_path: Path) -> None:
    cache = full_of(tmp_path, "abc")
    held = [cache.hold(bundle) for key in "ab" if (bundle := cache.bundle(key)) is not None]
    used(tmp_path, "a", 1)
    used(tmp_path, "b", 2)
    cache.keep_bundle(a_bundle(cache, "d"), "d")
    assert there(tmp_path, "bundles") == {"a", "b", "d"}
    held.clear()
    gc.collect()
    cache.keep_bundle(a_bundle(cache, "e"), "e")
    assert there(tmp_path, "bundles") == {"b", "d", "e"}


def test_a_bundle_that_is_held_twice_is_held_until_both_have_left(tmp_path: Path) -> None:
    cache = full_of(tmp_path, "ab")
    first, second = (cache.hold(bundle) for _ in range(2) if (bundle := cache.bundle("a")) is not None)
    used(tmp_path, "a", 1)
    del first
    gc.collect()
    cache.keep_bundle(a_bundle(cache, "c"), "c")
    assert there(tmp_path, "bundles") == {"a", "c"} and second.path.name == "a"


def test_one_that_is_larger_than_the_cache_is_kept_alone(tmp_path: Path) -> None:
    cache = full_of(tmp_path, "ab")
    cache.keep_bundle(a_bundle(cache, "c", padding=1 << 20), "c")
    assert there(tmp_path, "bundles") == {"c"}


def test_what_engines_left_counts_too(tmp_path: Path) -> None:
    roomy = AvatarCache(tmp_path, 1 << 30)
    roomy.keep_bundle(a_bundle(roomy, "a", padding=1 << 20), "a")
    used(tmp_path, "a", 1)
    cache = AvatarCache(tmp_path, 1 << 20)
    cache.keep_bundle(a_bundle(cache, "b"), "b")
    assert there(tmp_path, "bundles") == {"b"}


def test_parts_of_others_are_left_alone_while_they_are_fresh(tmp_path: Path) -> None:
    one = AvatarCache(tmp_path, ROOM)
    fresh, stale = one.part(), one.part()
    (stale / "half").write_bytes(b"x")
    long_ago = time.time() - 3700
    os.utime(stale, (long_ago, long_ago))
    AvatarCache(tmp_path, ROOM)
    assert fresh.exists() and not stale.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_reported_with_what_to_do(tmp_path: Path, number: int) -> None:
    with pytest.raises(DiskFull, match="AVATAR_CACHE_BYTES") as caught, AvatarCache(tmp_path, ROOM).writing():
        raise OSError(number, os.strerror(number))
    assert caught.value.retry_after_s == 60


def test_an_array_that_was_written_in_part_is_a_full_disk(tmp_path: Path) -> None:
    """numpy gives no number, only how much of it was written."""
    with pytest.raises(DiskFull), AvatarCache(tmp_path, ROOM).writing():
        raise OSError("120000 requested and 4096 written")


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), OSError("no number"), ValueError("requested and ")])
def test_other_errors_are_not_a_full_disk(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, AvatarCache(tmp_path, ROOM).writing():
        raise error
    assert caught.value is error


def test_a_source_is_found_by_its_digest_and_its_use_is_noted(tmp_path: Path) -> None:
    cache = AvatarCache(tmp_path, ROOM)
    part = cache.part()
    (part / "source").write_bytes(b"clip")
    path = cache.keep_source(part / "source", "d" * 64)
    os.utime(path, (1, 1))
    assert cache.source("d" * 64) == path and path.stat().st_mtime > 1
    assert cache.source("e" * 64) is None
