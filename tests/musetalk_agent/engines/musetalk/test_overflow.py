"""Half precision that overflows: the decoder, then everything, is built again in a wider type while frames go on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.musetalk.profiles import Options
from musetalk_agent.errors import EngineUnavailable
from tests.fakes.weights import write_models
from tests.late import late_imports
from tests.musetalk_agent.card_world import paint
from tests.musetalk_agent.engines.musetalk.faces import bundle_of, moved
from tests.waiting import wait_until

with late_imports("torch", "diffusers", "transformers"):
    import torch

    from musetalk_agent.engines.musetalk.engine import MuseTalkEngine
    from musetalk_agent.engines.musetalk.overflow import LOOKED_AT, OverflowGuard, UnfitFaces, WideDecoder
    from tests.fakes.cuda import fake_cuda


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), taesd=True)


def _faces(engine: MuseTalkEngine, folder: Path) -> Callable[[int], list[bool]]:
    """Makes faces of one avatar; whether each could be shown."""
    session = engine.open(bundle_of(folder, [moved(40, 20, 0.5, (400, 360))]))

    def made(count: int) -> list[bool]:
        shown = []
        for _ in range(count):
            flight = engine.launch([PatchRequest(session, 0, session.rest)])
            flight.wait()
            shown += [patch is not None for patch in flight.patches()]
        return shown

    return made


def _wide_decoder(network: Any) -> bool:
    return isinstance(network.decoder, WideDecoder)


def _wide(network: Any) -> bool:
    return bool(network.dtype != torch.float16)


@pytest.mark.parametrize(("capability", "dtype"), [((8, 9), "bfloat16"), ((7, 5), "float32")])
def test_a_decoder_that_overflows_is_built_again(
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capability: tuple[int, int],
    dtype: str,
) -> None:
    with fake_cuda(monkeypatch, capability=capability) as cuda:
        paint(monkeypatch, cuda, good=_wide_decoder)
        engine = MuseTalkEngine(models, Options(device="cuda:0"))
        engine.warmup()
        old, made = engine.network, _faces(engine, tmp_path)
        with caplog.at_level(logging.INFO):
            assert made(40) == [False] * 40 and engine.network is old  # 20 % are not more than 20 %
            made(1)
            wait_until(lambda: engine.network is not old and engine.pace.seconds)
        assert made(3) == [True] * 3 and engine.unfit_faces == 41
        new = engine.network
        assert new.unet is old.unet and new.encoder is old.encoder and new.dtype == torch.float16
        assert next(new.decoder.parameters()).dtype == getattr(torch, dtype)
        assert [r.message for r in caplog.records if "wider" in r.message] == [
            "float16 overflows: a part is built again in a wider type",
            "musetalk runs in a wider type",
        ]
        engine.close()


def test_where_the_decoder_was_not_to_blame_all_networks_are_built_again(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_cuda(monkeypatch) as cuda:
        paint(monkeypatch, cuda, good=_wide)
        engine = MuseTalkEngine(models, Options(device="cuda:0"))
        engine.warmup()
        made = _faces(engine, tmp_path)
        for _ in range(2):
            before = engine.network
            made(LOOKED_AT)
            wait_until(lambda before=before: engine.network is not before)  # type: ignore[misc]  # no type for its default
        assert made(2) == [True, True]
        assert {p.dtype for p in engine.network.parameters()} == {torch.bfloat16}
        engine.close()


def test_a_card_without_memory_for_it_goes_on_as_it_is(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with fake_cuda(monkeypatch) as cuda:
        paint(monkeypatch, cuda, good=_wide_decoder)
        engine = MuseTalkEngine(models, Options(device="cuda:0"))
        engine.warmup()
        old, made = engine.network, _faces(engine, tmp_path)
        cuda.fits = lambda size, held=engine: held._overflow._working is None  # type: ignore[misc]  # no type for its default
        made(41)
        wait_until(lambda: "was not built again" in caplog.text)
        assert engine.network is old and "no memory" in caplog.text
        engine.close()


def test_one_bad_run_counts_once_and_other_types_have_no_remedy(caplog: pytest.LogCaptureFixture) -> None:
    unfit = UnfitFaces()
    reported = [unfit.add(good=index % 2 == 0) for index in range(2 * LOOKED_AT)]
    assert [index for index, now in enumerate(reported) if now] == [81, LOOKED_AT + 81]
    assert not any(unfit.add(good=index % 5 != 0) for index in range(LOOKED_AT))
    rebuilt: list[object] = []
    guard = OverflowGuard(torch.float32, torch.float32, lambda part, dtype: rebuilt.append(part))
    for _ in range(LOOKED_AT):
        guard.add(good=False)
    assert not rebuilt and caplog.text.count("no other precision is left to try") == 1


def test_a_wide_decoder_computes_in_its_own_type() -> None:
    inner = torch.nn.Conv2d(4, 3, 1).to(torch.bfloat16)
    assert WideDecoder(inner, torch.bfloat16)(torch.ones(1, 4, 2, 2, dtype=torch.float16)).dtype == torch.bfloat16


def test_bfloat16_is_refused_on_a_card_without_it(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch, capability=(7, 5)):
        with pytest.raises(
            EngineUnavailable, match=r"cuda:0 has no convolutions in bfloat16.*MUSETALK_PRECISION=float16"
        ):
            MuseTalkEngine(models, Options(device="cuda:0", precision="bfloat16"))
