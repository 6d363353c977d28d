"""What a card keeps of avatars: each once, those in use always, the others while there is room."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.engines.musetalk.artefacts import MuseTalkArtefacts, _starts
from musetalk_agent.errors import EngineUnavailable
from musetalk_agent.media_types import Box, Patch
from tests.waiting import NEVER_S

if TYPE_CHECKING:  # torch is loaded when a test runs, not when it is collected
    from musetalk_agent.engines.musetalk.avatar_store import AvatarStore, MuseTalkSession

POSE_BYTES = 8 * 32 * 32 * 2
REST = np.arange(12, dtype=np.float32).reshape(4, 3)


def artefacts(idle_indices: int = 1) -> MuseTalkArtefacts:
    shown = np.tile(np.array([[0, 0, 2, 2]], np.int32), (idle_indices, 1))
    starts = _starts(shown)
    latents = np.full((idle_indices, 8, 32, 32), idle_indices, np.float16)
    return MuseTalkArtefacts(latents, shown, shown, np.zeros(int(starts[-1]), np.uint8), starts)


class Card:
    """The processor as a card that takes so many avatars before its memory is full; trimming makes room for one."""

    def __init__(self, room: int = 1000) -> None:
        self.room, self.trimmed, self.makes_room = room, 0, 0

    @property
    def device(self) -> Any:
        import torch

        if self.room <= 0:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.room -= 1
        return torch.device("cpu")

    def empty_cache(self) -> None:
        self.trimmed += 1
        self.room += self.makes_room


def store_of(card: Card | None = None, spare_poses: int = 2) -> AvatarStore:
    from musetalk_agent.engines.musetalk.avatar_store import AvatarStore

    return AvatarStore(cast("Any", card or Card()), spare_poses * POSE_BYTES)


def taken(store: AvatarStore, name: str, idle_indices: int = 1) -> bool:
    """Takes an avatar; whether it had to be loaded."""
    loaded = []
    store.take(Path(name), lambda: loaded.append(name) or artefacts(idle_indices))  # type: ignore[func-returns-value]  # None, then what is loaded
    return bool(loaded)


def test_sessions_of_one_avatar_share_it_and_the_first_loads_it() -> None:
    store = store_of()
    assert [taken(store, "a") for _ in range(3)] == [True, False, False]
    assert store.allocated() == POSE_BYTES


def test_the_longest_unused_is_dropped_when_the_spare_room_is_full() -> None:
    store = store_of(spare_poses=2)
    for name in "abc":
        taken(store, name)
    for name in "abc":
        store.give_back(Path(name))
    assert store.allocated() == 2 * POSE_BYTES
    assert [taken(store, name) for name in "cba"] == [False, False, True]


def test_an_avatar_in_use_is_never_dropped_however_full_it_is() -> None:
    store = store_of(spare_poses=0)
    taken(store, "a", idle_indices=5)
    taken(store, "b")
    store.give_back(Path("b"))
    assert store.allocated() == 5 * POSE_BYTES and not taken(store, "a")
    store.give_back(Path("a"))
    assert store.allocated() == 5 * POSE_BYTES, "one of its two sessions is left"
    store.give_back(Path("a"))
    assert store.allocated() == 0


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcd")), max_size=30), st.integers(0, 4))
def test_what_is_kept_is_what_is_in_use_and_the_last_used(acts: list[tuple[bool, str]], spare: int) -> None:
    store = store_of(spare_poses=spare)
    sessions: dict[str, int] = {}
    order: list[str] = []
    for takes, name in acts:
        if takes:
            assert taken(store, name) == (name not in order)
            sessions[name] = sessions.get(name, 0) + 1
        elif sessions.get(name):
            store.give_back(Path(name))
            sessions[name] -= 1
        else:
            continue
        order = [one for one in order if one != name] + [name]
        if not takes:
            idle = [one for one in order if not sessions[one]]
            order = [one for one in order if one not in idle[: max(0, len(idle) - spare)]]
        assert store.allocated() == len(order) * POSE_BYTES


def test_a_full_card_drops_what_nobody_uses_and_tries_once_more() -> None:
    card = Card(room=2)
    store = store_of(card, spare_poses=9)
    taken(store, "a")
    taken(store, "b")
    store.give_back(Path("a"))
    card.makes_room = 1
    assert taken(store, "c") and card.trimmed == 1
    assert store.allocated() == 2 * POSE_BYTES and not taken(store, "b")


def test_a_card_that_stays_full_says_so_and_forgets_nobody() -> None:
    card = Card(room=1)
    store = store_of(card)
    taken(store, "a")
    with pytest.raises(EngineUnavailable, match="no memory for another avatar") as caught:
        taken(store, "b")
    assert caught.value.value == POSE_BYTES and not taken(store, "a")


def test_an_avatar_that_cannot_be_loaded_leaves_the_store_as_it_was() -> None:
    store = store_of()

    def broken() -> MuseTalkArtefacts:
        raise OSError("no file")

    with pytest.raises(OSError, match="no file"):
        store.take(Path("a"), broken)
    assert store.allocated() == 0 and taken(store, "a")


def test_a_cleared_store_takes_no_more_and_takes_back_without_a_word() -> None:
    store = store_of()
    taken(store, "a")
    store.clear()
    store.give_back(Path("a"))
    store.give_back(Path("never there"))
    with pytest.raises(EngineUnavailable, match="is closing"):
        taken(store, "a")
    assert store.allocated() == 0


def test_threads_that_start_at_once_load_it_once() -> None:
    store, together, loads = store_of(), threading.Barrier(5), list[bool]()

    def start() -> None:
        together.wait()
        loads.append(taken(store, "a"))

    threads = [threading.Thread(target=start) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(loads) == [False] * 4 + [True]


def acting(
    store: AvatarStore, idle_indices: int = 3, mouths: list[float] | None = None, talks: bool = True
) -> MuseTalkSession:
    from musetalk_agent.engines.musetalk.avatar_store import MuseTalkSession

    avatar = store.take(Path("a"), lambda: artefacts(idle_indices))
    shares = mouths or [1.0] * idle_indices
    return MuseTalkSession(store, Path("a"), avatar, REST, shares.__getitem__, talks=talks)


@given(st.floats(0, 1))
def test_sound_fades_to_silence_and_its_place_in_time_stays(amount: float) -> None:
    feature = REST + np.float32(10)
    faded = acting(store_of()).fade_to_silence(feature, amount)
    assert faded.dtype == np.float32 and np.array_equal(faded[-1], feature[-1])
    assert faded[:-1] == pytest.approx(feature[:-1] - 10 * amount, abs=1e-4)
    assert np.array_equal(feature, REST + np.float32(10)), "what was given stays as it is"


def test_idle_mouths_are_shown_once_every_pose_that_has_one_got_it() -> None:
    session = acting(store_of(), 3, [1.0, 0.0, 0.5])
    assert session.missing_idle_patches() == (0, 2)
    patch = Patch(Box(0, 0, 2, 2), np.zeros((4, 4, 3), np.uint8)[::2, ::2])
    session.store_idle_patch(0, patch)
    assert (session.idle(0), session.missing_idle_patches(), session.rests) == (None, (2,), False)
    session.store_idle_patch(2, patch)
    kept = session.idle(0)
    assert kept is not None and kept.box == patch.box and kept.pixels.flags.c_contiguous and session.rests
    assert session.idle(1) is None and session.missing_idle_patches() == ()


def test_another_session_of_the_avatar_need_not_make_them_again() -> None:
    store = store_of()
    first, second = acting(store, 1), acting(store, 1)
    first.store_idle_patch(0, Patch(Box(0, 0, 2, 2), np.zeros((2, 2, 3), np.uint8)))
    assert second.missing_idle_patches() == () and second.idle(0) is not None


def test_a_clip_that_is_silent_by_itself_is_shown_as_it_is() -> None:
    session = acting(store_of(), talks=False)
    assert (session.missing_idle_patches(), session.idle(0), session.rests) == ((), None, False)


def test_closing_twice_gives_back_once() -> None:
    store = store_of(spare_poses=0)
    first, second = acting(store), acting(store)
    first.close()
    first.close()
    assert store.allocated() == 3 * POSE_BYTES, "the other session still shows it"
    second.close()
    assert store.allocated() == 0


def test_an_avatar_that_loads_for_long_holds_up_no_other_one() -> None:
    store, begun, gate = store_of(), threading.Event(), threading.Event()
    loads: list[int] = []

    def slow() -> MuseTalkArtefacts:
        loads.append(1)
        begun.set()
        assert gate.wait(NEVER_S)
        return artefacts()

    threads = [threading.Thread(target=store.take, args=(Path("slow"), slow)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(NEVER_S)
    assert taken(store, "other") and store.allocated() == POSE_BYTES  # /debug and the ends of sessions go on
    store.give_back(Path("other"))
    gate.set()
    for thread in threads:
        thread.join(NEVER_S)
    assert loads == [1] and store._avatars[Path("slow")].sessions == 3


def test_a_load_that_fails_is_tried_by_the_next_who_waits() -> None:
    store, begun, gate = store_of(), threading.Event(), threading.Event()
    failed: list[Exception] = []

    def broken() -> MuseTalkArtefacts:
        begun.set()
        assert gate.wait(NEVER_S)
        raise OSError("a disk that is gone")

    def first() -> None:
        try:
            store.take(Path("a"), broken)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=first), threading.Thread(target=taken, args=(store, "a"))]
    threads[0].start()
    assert begun.wait(NEVER_S)
    threads[1].start()
    gate.set()
    for thread in threads:
        thread.join(NEVER_S)
    assert len(failed) == 1 and store._avatars[Path("a")].sessions == 1
