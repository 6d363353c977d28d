"""Buckets, host memory, memory that runs out, and a card that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from musetalk_agent.engines.batcher import MAX_UNDELIVERED
from musetalk_agent.errors import EngineFailed, EngineOutOfMemory, EngineUnavailable
from musetalk_agent.media_types import Feature
from tests.late import late_imports

with late_imports("torch"):
    import torch

    from musetalk_agent.engines.musetalk.device import CudaCard, card_for, device_errors
    from musetalk_agent.engines.musetalk.runner import HEADROOM, Launched, Runner, Slowdown, Throughput
    from tests.musetalk_agent.engines.musetalk.models import CardWithPinnedMemory, MeanNetwork


WINDOW = (3, 80)


def runner_of(
    fails: Callable[[int], None] = lambda _: None, sizes: tuple[int, ...] = (1, 2, 4)
) -> tuple[Runner, MeanNetwork, CardWithPinnedMemory]:
    network, card = MeanNetwork(fails), CardWithPinnedMemory()
    return Runner(network, card, WINDOW, 256, sizes), network, card  # type: ignore[arg-type]


def frames(*values: int) -> tuple[list[Feature], list[torch.Tensor]]:
    """Features that sum to each value, latents of zero."""
    features = [np.full(WINDOW, value / 240, np.float32) for value in values]
    return features, [torch.zeros(8, 32, 32, dtype=torch.float16)] * len(values)


def values(launched: list[Launched]) -> list[int]:
    """The byte of each face, in order; gives the memory back."""
    found = []
    for piece in launched:
        piece.wait()
        assert piece.pixels.shape == (len(piece), 256, 256, 3)
        found += [int(face[-1, -1, 0]) for face in piece.pixels]
        piece.release()
    return found


def test_a_batch_is_padded_to_its_bucket_and_comes_back_in_order() -> None:
    runner, network, card = runner_of()
    runner.warmup()
    assert card.captured == 3 and runner.sizes == (1, 2, 4)
    network.batches.clear()
    assert values(runner.launch(*frames(10, 20, 30))) == [10, 20, 30]
    assert values(runner.launch(*frames(40))) == [40]
    assert network.batches == [4, 1]


def test_nothing_is_captured_again_once_it_is_warm() -> None:
    runner, _, card = runner_of()
    runner.warmup()
    for count in (1, 2, 3, 4, 7):
        values(runner.launch(*frames(*range(1, count + 1))))
    assert card.captured == 3


def test_latents_of_many_avatars_travel_with_their_own_frames() -> None:
    runner, _, _ = runner_of()
    runner.warmup()
    features, _ = frames(0, 0, 0)
    latents = [torch.full((8, 32, 32), value, dtype=torch.float16) for value in (5.0, 6.0, 7.0)]
    assert values(runner.launch(features, latents)) == [5, 6, 7]


def test_two_batches_under_way_do_not_share_host_memory() -> None:
    runner, _, card = runner_of()
    runner.warmup()
    first, second = runner.launch(*frames(1, 2)), runner.launch(*frames(3, 4))
    assert card.waited == 0
    assert values(first) + values(second) == [1, 2, 3, 4]
    slots = {id(piece._slot) for piece in (*first, *second, *runner.launch(*frames(5)))}
    assert len(slots) == 2  # the third took one that was given back


def test_a_batch_larger_than_the_largest_bucket_goes_in_pieces() -> None:
    runner, network, _ = runner_of()
    runner.warmup()
    network.batches.clear()
    assert values(runner.launch(*frames(*range(1, 10)))) == list(range(1, 10))
    assert network.batches == [4, 4, 1]


def test_out_of_memory_halves_the_largest_bucket_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    full: list[int] = []

    def fails(size: int) -> None:
        if full and size > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    runner, network, card = runner_of(fails, (1, 2, 4, 8))
    runner.warmup()
    full.append(1)
    network.batches.clear()
    with caplog.at_level(logging.WARNING):
        assert values(runner.launch(*frames(1, 2, 3, 4, 5, 6))) == [1, 2, 3, 4, 5, 6]
    assert runner.sizes == (1, 2) and card.trimmed == 2
    assert network.batches == [8, 4, 2, 2, 2]
    assert [record.message for record in caplog.records] == ["out of memory on the card: smaller batches"] * 2


def test_buckets_that_never_fit_are_given_up_while_warming() -> None:
    def fails(size: int) -> None:
        if size > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    class Capturing(CardWithPinnedMemory):
        def capture(self, call: Callable[[], Any]) -> Callable[[], Any]:
            call()
            return super().capture(call)

    card = Capturing()
    runner = Runner(MeanNetwork(fails), card, WINDOW, 256, (1, 2, 4, 8))  # type: ignore[arg-type]
    runner.warmup()
    assert runner.sizes == (1, 2) and card.captured == 2
    assert sorted(runner.measure()) == [1, 2]


def test_no_memory_for_a_single_frame_says_so() -> None:
    def fails(size: int) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    runner, _, _ = runner_of(fails)
    with pytest.raises(EngineUnavailable, match="single frame"):
        runner.launch(*frames(1))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered\nmore",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "AcceleratorError",
    ],
)
def test_a_card_that_fails_is_distinguished_from_a_mistake(text: str) -> None:
    error = RuntimeError(text)
    if text == "AcceleratorError":
        error = torch.AcceleratorError("CUDA error: unspecified launch failure")

    def fails(size: int) -> None:
        raise error

    with pytest.raises(EngineFailed, match="The card failed"):
        runner_of(fails)[0].launch(*frames(1))
    runner, _, card = runner_of()
    card.error = error
    with pytest.raises(EngineFailed, match="The card failed"):
        runner.launch(*frames(1))[0].wait()


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"), device_errors():
        raise RuntimeError("The size of tensor a must match")
    with pytest.raises(torch.cuda.OutOfMemoryError), device_errors():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_the_flag_of_each_face_comes_with_it() -> None:
    runner, _, _ = runner_of()
    piece = runner.launch(*frames(1, 251))[0]
    piece.wait()
    assert piece.good.tolist() == [True, False]


def test_a_pace_is_measured_for_every_bucket() -> None:
    runner, _, _ = runner_of()
    runner.warmup()
    assert set(runner.measure()) == {1, 2, 4}
    runner.close()
    runner.close()


def test_a_card_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(EngineUnavailable, match="no cuda:0"):
        CudaCard("cuda:0")
    assert card_for("cpu").device.type == "cpu"


def test_capacity_is_the_best_buckets_pace_with_headroom() -> None:
    pace = Throughput({1: 0.005, 4: 0.010, 16: 0.032})
    assert pace.frames_per_second == 500
    assert pace.capacity(25) == int(500 * HEADROOM / 25) == 15
    assert pace.capacity(30) == 12


def test_a_device_that_cannot_hold_one_session_says_none() -> None:
    assert Throughput({1: 5.0}).capacity(25) == 0
    assert Throughput().capacity(25) == 0


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nmore",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_a_library_without_memory_makes_batches_smaller(text: str) -> None:
    full: list[int] = []

    def fails(size: int) -> None:
        if full and size > 2:
            raise RuntimeError(text)

    runner, _, _ = runner_of(fails, (1, 2, 4))
    runner.warmup()
    full.append(1)
    assert values(runner.launch(*frames(1, 2, 3))) == [1, 2, 3]
    assert runner.sizes == (1, 2)


def test_a_frame_that_found_no_memory_leaves_the_smallest_bucket_captured() -> None:
    full: list[int] = []

    def fails(size: int) -> None:
        if full:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    runner, _, card = runner_of(fails, (1, 2))
    runner.warmup()
    captured = card.captured
    full.append(1)
    for _ in range(3):
        with pytest.raises(EngineOutOfMemory, match="single frame: CUDA out of memory"):
            runner.launch(*frames(1))
    full.clear()
    assert values(runner.launch(*frames(1))) == [1] and card.captured == captured


def test_no_host_memory_is_made_in_service() -> None:
    runner, _, _ = runner_of()
    runner.warmup()
    made = {id(slot) for slot in runner._slots}
    flights = [runner.launch(*frames(1)) for _ in range(MAX_UNDELIVERED + 2)]
    assert {id(piece._slot) for flight in flights for piece in flight} == made and not runner._slots
    for flight in flights:
        values(flight)


def test_a_card_is_measured_once_it_has_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of the largest bucket take 10 ms in the first second and 20 ms after it."""
    runner, network, card = runner_of()
    runner.warmup()
    card.settle_s = 3.0
    now = [0.0]
    monkeypatch.setattr("musetalk_agent.engines.musetalk.runner.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def works(size: int) -> None:
        now[0] += (0.01 if now[0] < 1 else 0.02) * size / 4

    network.fails = works
    found = runner.measure()
    assert list(found) == [1, 2, 4]
    assert found[4] == pytest.approx(0.02, rel=0.05) and found[1] == pytest.approx(0.005, rel=0.05)


def test_service_lowers_what_is_promised_but_not_to_nothing() -> None:
    pace, slowdown = Throughput({16: 0.032}), Slowdown()
    for _ in range(1000):
        slowdown.add(0.032, 0.048, queued=True)
    assert slowdown.factor == pytest.approx(1.5) and pace.capacity(25, slowdown.factor) == 10
    slowdown.add(0.032, 0.9, queued=False)  # the host was busy
    assert slowdown.factor == pytest.approx(1.5)
    for _ in range(1000):
        slowdown.add(0.032, 0.030, queued=False)  # alone on the card it is fast again
    assert slowdown.factor == 1
    assert Throughput({1: 0.025}).capacity(25, 4.0) == 1 and Throughput({1: 0.1}).capacity(25, 1.0) == 0
