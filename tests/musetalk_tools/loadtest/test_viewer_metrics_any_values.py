"""Percentiles and bars of the load test for any values, against a sorted list."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_tools.loadtest.thresholds import FAILED, THRESHOLDS, judge
from musetalk_tools.loadtest.viewer_metrics import Figure, Histogram

_value = st.floats(-1e4, 1e4, allow_nan=False)


@settings(max_examples=200)
@given(values=st.lists(_value, min_size=1, max_size=200), step=st.sampled_from([0.001, 0.1, 1.0, 5.0]))
def test_a_figure_says_what_the_sorted_values_say(values: list[float], step: float) -> None:
    tally = Histogram("ms", step)
    values = [max(-1e6 * step, min(1e6 * step, value)) for value in values]  # what lies beyond counts as this far
    for value in values:
        tally.add(value)
    figure, ordered = tally.figure(), sorted(values)
    assert figure is not None and figure.count == len(tally) == len(values)
    for name, share in (("min", 0.0), ("p5", 0.05), ("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
        exact = ordered[round(share * (len(ordered) - 1))]
        assert abs(getattr(figure, name) - exact) <= step / 2 + 1e-6
    assert abs(figure.mean - sum(values) / len(values)) <= step / 2 + 1e-6
    assert figure.min <= figure.p5 <= figure.p50 <= figure.p95 <= figure.p99 <= figure.max


@given(values=st.lists(st.sampled_from([math.inf, -math.inf, math.nan, 1e300, 3.0]), max_size=20))
def test_a_value_that_is_none_does_not_end_the_run(values: list[float]) -> None:
    tally = Histogram("ms", 0.1)
    for value in values:
        tally.add(value)
    figure = tally.figure()
    assert figure is None or math.isfinite(figure.mean + figure.max + figure.min)


@given(
    bars=st.dictionaries(st.sampled_from([kind.option for kind in THRESHOLDS] + [FAILED]), st.floats(0, 1000)),
    values=st.dictionaries(st.sampled_from([kind.figure for kind in THRESHOLDS]), st.floats(0, 1000)),
    failed=st.integers(0, 3),
)
def test_a_bar_is_held_only_by_a_value_on_its_right_side(
    bars: dict[str, float], values: dict[str, float], failed: int
) -> None:
    figures = {
        name: Figure(unit="", count=1, **dict.fromkeys(("mean", "min", "p5", "p50", "p95", "p99", "max"), value))
        for name, value in values.items()
    }
    verdicts = {verdict.option: verdict for verdict in judge(bars, figures, failed)}
    assert set(verdicts) == set(bars) | {FAILED}
    assert verdicts[FAILED].held == (failed <= bars.get(FAILED, 0))
    for kind in THRESHOLDS:
        if kind.option not in bars:
            continue
        value, held = values.get(kind.figure), verdicts[kind.option].held
        if value is None:
            assert held == (kind.figure == "move_s"), "what was not measured is not held; no move is no slow move"
        else:
            assert held == (value >= bars[kind.option] if kind.at_least else value <= bars[kind.option])
