"""What a card should hold, by its names and by the model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from musetalk_agent.card_estimates import CARDS, PACED_MOST, PROFILES, card_of, frames_per_second, sessions
from musetalk_agent.engines.musetalk.profiles import PROFILES as ENGINE_PROFILES

PAGE = Path(__file__).resolve().parents[2] / "docs/explanation/musetalk-engine.md"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("H100!", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("A100", "A100-40GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla T4", "T4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L40S", "L40S"),
        ("L4:2", "L4"),
        ("NVIDIA A40", None),
        ("", None),
    ],
)
def test_a_card_is_known_by_the_drivers_name_and_by_modals(name: str, known: str | None) -> None:
    assert card_of(name) == (CARDS[known] if known else None)


def test_memory_tells_the_two_a100_apart() -> None:
    assert card_of("NVIDIA A100-SXM4", 40 << 30) == CARDS["A100-40GB"]
    assert card_of("NVIDIA A100-SXM4", 80 << 30) == CARDS["A100-80GB"]


def test_the_profiles_are_the_engines_and_a_process_paces_so_many() -> None:
    assert set(PROFILES) == set(ENGINE_PROFILES)
    assert sessions(CARDS["H200"], "fast") == PACED_MOST
    for card in CARDS.values():
        assert sessions(card) <= sessions(card, "lower") <= sessions(card, "fast")


def test_the_model_agrees_with_what_others_measured() -> None:
    """Frames a second of upstream's network in eager mode (docs/explanation/musetalk-engine.md)."""
    assert 72 * 0.75 < frames_per_second(CARDS["RTX 4090"]) < 81 * 1.25
    assert 41 * 0.75 < frames_per_second(CARDS["RTX 3090"]) < 51 * 1.25


def test_the_page_has_the_models_figures() -> None:
    rows = re.findall(
        r"^\| (T4|L4|A10|L40S|H100, H200)\b[^|]*\| ([\d, ]+) \| ([\d,; ]+) \|$", PAGE.read_text("utf-8"), re.M
    )
    assert len(rows) == 5
    for names, paces, held in rows:
        for name, pace, each in zip(names.split(", "), paces.split(", "), held.split("; "), strict=True):
            assert round(frames_per_second(CARDS[name])) == int(pace)
            assert [sessions(CARDS[name], profile) for profile in PROFILES] == [int(n) for n in each.split(", ")]
