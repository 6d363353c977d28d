"""What waits to be pushed: order, age, what is given up, and what comes back."""

from __future__ import annotations

import numpy as np

from musetalk_agent.publishers.stream.encoder import AUDIO_S, MediaQueue, QueuedAudio, QueuedFrame
from tests.musetalk_agent.publishers.feed import picture

GREY = picture(90, 16)


def sound(at: float, seconds: float = 0.04) -> QueuedAudio:
    return QueuedAudio(at, np.zeros(int(seconds * 48_000), np.int16))


def test_media_come_in_the_order_of_their_times_sound_first() -> None:
    queue = MediaQueue()
    queue.offer_video(QueuedFrame(1.0, GREY))
    queue.offer_audio(sound(1.0))
    queue.offer_video(QueuedFrame(1.02, GREY))
    queue.offer_audio(sound(1.04))
    taken = [queue.take(1.0) for _ in range(4)]
    assert [(type(item), item.at) for item in taken if item] == [
        (QueuedAudio, 1.0), (QueuedFrame, 1.0), (QueuedFrame, 1.02), (QueuedAudio, 1.04),
    ]  # fmt: skip
    assert queue.take(1.0) is None and queue.seconds() == 0.0


def test_more_than_half_a_second_of_pictures_is_dropped_up_to_a_key_frame() -> None:
    queue = MediaQueue()
    for index in range(14):
        queue.offer_video(QueuedFrame(index * 0.04, GREY))
    assert queue.dropped_frames == 13
    item = queue.take(0.52)
    assert isinstance(item, QueuedFrame) and item.at == 13 * 0.04 and item.key
    queue.offer_video(QueuedFrame(0.56, GREY))
    item = queue.take(0.56)
    assert isinstance(item, QueuedFrame) and not item.key


def test_pictures_that_grew_old_while_they_waited_are_not_pushed() -> None:
    queue = MediaQueue()
    queue.offer_video(QueuedFrame(1.0, GREY))
    queue.offer_video(QueuedFrame(1.2, GREY))
    item = queue.take(1.6)
    assert isinstance(item, QueuedFrame) and item.at == 1.2 and item.key
    assert queue.dropped_frames == 1


def test_sound_is_kept_for_three_seconds_and_what_comes_back_is_first() -> None:
    queue = MediaQueue()
    for index in range(100):
        queue.offer_audio(sound(index * 0.04))
    assert abs(queue.seconds() - AUDIO_S) < 0.05
    assert queue.dropped_audio == 25
    first = queue.take(0.0)
    assert isinstance(first, QueuedAudio) and abs(first.at - 1.0) < 1e-9
    queue.requeue(first)
    assert queue.take(0.0) is first


def test_a_clear_drops_sound_from_a_moment_on_and_no_picture() -> None:
    queue = MediaQueue()
    for index in range(10):
        queue.offer_audio(sound(index * 0.04))
    queue.offer_video(QueuedFrame(0.2, GREY))
    queue.clear_audio(0.2)
    queue.clear_audio(0.3)
    assert queue.take_cut() == 0.2 and queue.take_cut() is None
    taken = [queue.take(0.2) for _ in range(7)]
    assert [item.at for item in taken if isinstance(item, QueuedAudio)] == [0.0, 0.04, 0.08, 0.12, 0.16]
    assert [item.at for item in taken if isinstance(item, QueuedFrame)] == [0.2] and taken[-1] is None
    queue.offer_audio(sound(0.4))
    queue.clear_audio()
    assert queue.take(0.4) is None and queue.dropped_audio == 0


def test_a_stopped_queue_waits_for_nobody() -> None:
    queue = MediaQueue()
    queue.stop()
    queue.wait(60)
    queue.rest(60)
    assert queue.stopped
