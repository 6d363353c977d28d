"""`make accept-gpu`: what it writes, that it goes on after a break, and that it runs through without a card."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import pytest

from tests.bench import accept
from tests.bench.accept import BEGIN, END, ROWS, Run, markdown, write_into
from tests.bench.gpu import FIGURES
from tests.bench.shop import DEMO, NEEDS_CARD
from tests.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]


def run_of(out: Path, **changes: Any) -> Run:
    given: dict[str, Any] = {
        "out": out,
        "device": "cpu",
        "tiny": True,
        "profile": "quality",
        "seconds": 0.1,
        "faces": None,
        "models": out / "models",
        "deadline": time.monotonic() + 100,
    }
    return Run(**given | changes)


def row(name: str, state: str = "done", value: float | None = 1.5) -> dict[str, Any]:
    figure = {"figure": f"the {name}", "value": value, "unit": "ms", "bar": "<= 2", "note": "a|b"}
    return {"state": state, "seconds": 1.0, "at": "now", "figures": [figure]}


def test_every_row_is_a_figure_of_the_bench_and_every_figure_a_row() -> None:
    assert set(ROWS) == set(FIGURES)


def test_after_a_break_only_what_is_missing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[str] = []

    def one(run: Run, name: str, within_s: float) -> dict[str, Any]:
        if name == "exact" and len(ran) < 3:
            ran.append("break")
            raise KeyboardInterrupt
        ran.append(name)
        return row(name, "failed" if name == "card" and ran.count("card") == 1 else "done")

    monkeypatch.setattr(accept, "one", one)
    names = ["counted", "card", "exact"]
    with pytest.raises(KeyboardInterrupt):
        accept.accept(run_of(tmp_path), names)
    assert list(json.loads((tmp_path / "accept-gpu.json").read_text())["rows"]) == ["counted", "card"]
    assert accept.accept(run_of(tmp_path), names) == 0
    assert ran == ["counted", "card", "break", "card", "exact"]  # what failed is tried again, what is done is not
    assert accept.accept(run_of(tmp_path), names) == 0 and len(ran) == 5
    accept.accept(run_of(tmp_path, profile="fast"), names[:1])
    assert ran[5:] == ["counted"], "rows of another profile do not count"
    accept.accept(run_of(tmp_path, profile="fast"), names[:1], fresh=True)
    assert ran[5:] == ["counted", "counted"]


def test_rows_that_time_does_not_reach_are_left_for_the_next_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accept, "one", lambda run, name, within_s: row(name))
    assert accept.accept(run_of(tmp_path, deadline=time.monotonic()), ["counted"]) == 1
    assert "no time left" in capsys.readouterr().out
    assert accept.accept(run_of(tmp_path), ["counted"]) == 0


def test_a_row_that_does_not_end_is_ended_with_what_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its process prints a figure and waits for a child for ever; both are gone afterwards, and the figure is kept."""
    stuck = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE);"
        'print(\'{"figure": "one", "value": 1, "unit": "", "note": "\' + str(child.pid) + \'"}\', flush=True); child.wait()'
    )
    real, asked = subprocess.Popen, list[str]()

    def started(command: list[str], **given: Any) -> Any:
        asked.extend(command)
        return real([sys.executable, "-c", stuck], **given)

    monkeypatch.setattr(accept.subprocess, "Popen", started)
    found = accept.one(run_of(tmp_path, faces=tmp_path / "faces"), "card", 5)
    given = dict(itertools.pairwise(asked))
    assert given["--faces"] == str(tmp_path / "faces") and given["--films"] == str(tmp_path / "films")
    assert found["state"] == "out of time"
    assert found["figures"][0]["value"] == 1
    child = Path("/proc", found["figures"][0]["note"], "stat")

    def gone() -> bool:
        try:
            return child.read_text().rpartition(")")[2].split()[0] == "Z"  # nobody has reaped it yet
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(gone)


def test_the_table_has_every_row_and_goes_between_the_marks(tmp_path: Path) -> None:
    key = {"commit": "abc", "card": "a card", "profile": "quality", "tiny": False}
    rows = {"exact": row("exact"), "hold": row("hold", value=None), "rooms": row("rooms", "out of time")}
    table = markdown({"key": key, "machine": "a machine", "rows": rows})
    assert "| the exact | <= 2 | 1.5 ms | a/b |" in table
    assert "| the hold | <= 2 | not measured | a/b |" in table and "| rooms | | out of time | |" in table
    assert "commit abc" in table and "a machine" in table
    document = tmp_path / "performance.md"
    document.write_text(f"# P\n{BEGIN}\nold\n{END}\nafter\n")
    write_into(document, table)
    write_into(document, table)
    assert document.read_text() == f"# P\n{BEGIN}\n{table}{END}\nafter\n"
    document.write_text("nothing")
    with pytest.raises(ValueError, match="has no lines"):
        write_into(document, table)
    assert BEGIN in accept.PERFORMANCE.read_text() and END in accept.PERFORMANCE.read_text()


SLOW = {"throughput", "variants", "latency", "hold", "preparation", "startup"}
"""Minutes on a busy processor, and through the same call as the others: `python -m tests.bench.accept` runs them too."""
OWN_PROCESS = {"card", "films"}
"""What runs as `make accept-gpu` runs every row. The others share a process: each imports torch for six CPU seconds."""


COMMON = ["--device", "cpu", "--tiny", "--seconds", "0.1"]


def has_what_it_can(figures: list[dict[str, Any]]) -> None:
    for figure in figures:
        assert figure["value"] is not None or NEEDS_CARD in figure.get("note", "") or "lag" in figure["figure"], figure


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where rows are written down. The weights in it are written by the first row of all."""
    return tmp_path_factory.mktemp("out")


@pytest.mark.network
def test_without_a_card_every_row_is_filled_or_needs_one(out: Path) -> None:
    names = [name for name in ROWS if name not in SLOW | OWN_PROCESS]
    done = called("tests.bench.gpu", "--only", ",".join(names), "--models", str(out / "tiny"))
    figures = [json.loads(line) for line in done.splitlines() if line.startswith("{")]
    has_what_it_can(figures)
    assert len(figures) >= len(names)


def test_a_row_is_made_in_its_own_process_and_written_down(out: Path, tmp_path: Path) -> None:
    made_alone("card", out, faces=tmp_path)


@pytest.mark.network  # fifteen CPU seconds in processes that import torch, and no branch of the product that others do not reach
def test_faces_are_filmed_in_a_process_of_their_own(out: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "demo.png"), cv2.resize(cv2.imread(str(DEMO)), (320, 320)))
    made_alone("films", out, faces=tmp_path)
    assert (out / "films" / "demo.mp4").stat().st_size > 1000
    assert (out / "films" / "contact-sheet.jpg").stat().st_size > 1000


def made_alone(name: str, out: Path, faces: Path) -> None:
    """Runs a row as `make accept-gpu` does, and looks at what is written down."""
    called("tests.bench.accept", "--only", name, "--out", str(out), "--faces", str(faces), "--fresh")
    rows = json.loads((out / "accept-gpu.json").read_text())["rows"]
    assert set(rows) == {name}
    assert rows[name]["state"] == "done" and rows[name]["figures"]
    has_what_it_can(rows[name]["figures"])


def called(module: str, *given: str) -> str:
    """What a command of the bench prints without a card."""
    command = [sys.executable, "-m", module, *COMMON, *given]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout
