"""`make accept-gpu`: everything that only a card can show, in 25 minutes: one JSON, and the rows of docs/reference/performance.md.

    python -m tests.bench.accept                          on cuda:0; without a card the small network on the processor
    python -m tests.bench.accept --faces FOLDER           films of real faces too, where real weights lie in MODELS_DIR
    python -m tests.bench.accept --out FOLDER             accept-gpu.json, accept-gpu.md, films (default: build/accept-gpu)

Each row runs in a process of its own, so that a card that one of them breaks is whole for the next. It may be broken off at any
moment and called again: finished rows of the same commit, card and profile are in the JSON and are not run again (--fresh does).
Exit code 1 when a row failed or time ran out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.figures import machine

_REPOSITORY = Path(__file__).resolve().parents[2]
PERFORMANCE = _REPOSITORY / "docs" / "reference" / "performance.md"
BEGIN, END = "<!-- accept-gpu -->", "<!-- /accept-gpu -->"
WHOLE_S = 25 * 60.0
ROWS = {
    "counted": 60,
    "card": 60,
    "exact": 150,
    "throughput": 180,
    "variants": 240,
    "latency": 90,
    "lips": 60,
    "hold": 200,
    "faults": 240,
    "memory": 90,
    "rooms": 240,
    "films": 300,
    "preparation": 60,
    "startup": 200,
}
"""Figures of `tests.bench.gpu` in the order of what is worth knowing first, and the seconds after which each is given up."""
_ENDS_IN_S = 10.0
_SLOWER = 4
"""Rows are given so many times longer on the processor."""


@dataclass(frozen=True)
class Run:
    """What is accepted, and where it is written."""

    out: Path
    device: str
    tiny: bool
    profile: str
    seconds: float
    faces: Path | None
    models: Path
    deadline: float

    def key(self) -> dict[str, Any]:
        """What a finished row holds for."""
        return {"commit": _commit(), "card": _card(self.device), "profile": self.profile, "tiny": self.tiny}


class Accepted:
    """The JSON of a run. Rows of another commit, card or profile are dropped when it is opened."""

    def __init__(self, path: Path, key: dict[str, Any], *, fresh: bool) -> None:
        self.path, self.content = path, {"key": key, "machine": machine(), "rows": dict[str, Any]()}
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            return
        if not fresh and isinstance(found, dict) and found.get("key") == key:
            self.content["rows"] = found["rows"]

    def finished(self, name: str) -> bool:
        """Whether a row has its figures."""
        row: dict[str, Any] = self.content["rows"].get(name, {})
        return row.get("state") == "done"

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Writes a row at once."""
        self.content["rows"][name] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")
        part.replace(self.path)


def one(run: Run, name: str, within_s: float) -> dict[str, Any]:
    """Runs a row in a process of its own and ends it, with everything that it started, after `within_s` seconds."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.gpu",
        "--only",
        name,
        "--device",
        run.device,
        "--profile",
        run.profile,
    ]
    command += ["--models", str(run.models), "--seconds", str(run.seconds), "--films", str(run.out / "films")]
    command += [*(["--tiny"] if run.tiny else []), *(["--faces", str(run.faces)] if run.faces else [])]
    # on a busy processor threads of torch that wait for each other cost more than they gain
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if run.device == "cpu" else {})
    begun = time.monotonic()
    log = run.out / f"{name}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            cwd=_REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=within_s)
            state = "done" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            printed, state = _end(process), "out of time"
        except BaseException:
            _end(process)
            raise
    figures = [json.loads(line) for line in (printed or "").splitlines() if line.startswith("{")]
    for figure in figures:
        figure.pop("machine", None)
    if not figures:
        why = f"{state}; {log.read_text(errors='replace').strip()[-300:]}"
        figures = [{"figure": name, "value": None, "unit": "", "note": why}]
    elif any(str(figure.get("note", "")).startswith("failed:") for figure in figures) and state == "done":
        state = "failed"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"state": state, "seconds": round(time.monotonic() - begun, 1), "at": now, "figures": figures}


def _end(process: subprocess.Popen[str]) -> str:
    for how in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, how)
        try:
            return process.communicate(timeout=_ENDS_IN_S)[0] or ""
        except subprocess.TimeoutExpired:
            continue
    return ""


def markdown(content: dict[str, Any]) -> str:
    """The table of a run."""
    key = content["key"]
    small = (
        "; the small network with random weights: its rows prove the command and measure nothing" if key["tiny"] else ""
    )
    lines = [
        f"`make accept-gpu`, commit {key['commit']}, profile `{key['profile']}`: {key['card']}; {content['machine']}{small}.",
        "",
    ]
    lines += ["| what | bar | measured | |", "|---|---|---|---|"]
    for name, row in content["rows"].items():
        for figure in row["figures"]:
            value = figure["value"]
            measured = f"{value:g} {figure['unit']}" if value is not None else "not measured"
            cells = (figure["figure"], figure.get("bar", ""), measured, figure.get("note", ""))
            lines.append("| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |")
        if row["state"] != "done":
            lines.append(f"| {name} | | {row['state']} | |")
    return "\n".join(lines) + "\n"


def write_into(document: Path, table: str) -> None:
    """Puts the table between the marks of a document. Raises ValueError where they are missing."""
    text = document.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has no lines {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n{table}{END}{after}", "utf-8")


def accept(run: Run, names: list[str], *, fresh: bool = False) -> int:
    """Runs the rows that are missing; 0 when every row is finished."""
    run.out.mkdir(parents=True, exist_ok=True)
    accepted = Accepted(run.out / "accept-gpu.json", run.key(), fresh=fresh)
    for name in names:
        left = run.deadline - time.monotonic()
        if accepted.finished(name):
            print(f"{name}: finished before", flush=True)
            continue
        if left < _ENDS_IN_S:
            print(f"{name}: no time left; call it again", flush=True)
            continue
        row = one(run, name, min(left, ROWS[name] * (_SLOWER if run.device == "cpu" else 1)))
        accepted.add(name, row)
        print(f"{name}: {row['state']} in {row['seconds']:.0f} s", flush=True)
        for figure in row["figures"]:
            print("   " + json.dumps(figure, ensure_ascii=False), flush=True)
    (run.out / "accept-gpu.md").write_text(markdown(accepted.content), "utf-8")
    return 0 if all(map(accepted.finished, names)) else 1


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="accept-gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=_REPOSITORY / "build" / "accept-gpu")
    parser.add_argument("--device", default=None, help="default: cuda:0, or cpu with --tiny where there is no card")
    parser.add_argument("--tiny", action="store_true", help="a small network instead of the full one")
    parser.add_argument("--profile", default="quality", choices=("quality", "lower", "fast"))
    parser.add_argument("--seconds", type=float, default=None, help="length of each measurement (default 12, tiny 1)")
    parser.add_argument("--faces", type=Path, default=None, help="a folder of pictures and clips to be filmed")
    parser.add_argument("--only", default="", help=f"rows separated by commas: {', '.join(ROWS)}")
    parser.add_argument("--fresh", action="store_true", help="finished rows too")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name] or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"there is no row {', '.join(unknown)}")
    if options.faces is not None and not options.faces.is_dir():
        parser.error(f"{options.faces} is no folder of faces")
    deadline = time.monotonic() + WHOLE_S
    device = options.device or ("cuda:0" if _has_card() else "cpu")
    tiny = options.tiny or device == "cpu"
    seconds = options.seconds or (1.0 if tiny else 12.0)
    out = options.out.resolve()
    faces = options.faces and options.faces.resolve()
    models = out / ("tiny" if tiny else "random")
    run = Run(out, device, tiny, options.profile, seconds, faces, models, deadline)
    code = accept(run, names, fresh=options.fresh)
    if device != "cpu":
        write_into(PERFORMANCE, (out / "accept-gpu.md").read_text("utf-8"))
    print(f"{out / 'accept-gpu.json'}; {out / 'accept-gpu.md'}")
    return code


def _has_card() -> bool:
    return "cpu" not in _card("cuda:0")


def _card(device: str) -> str:
    if device == "cpu":
        return "cpu"
    try:
        import torch
    except ImportError:
        return "cpu"
    if not torch.cuda.is_available():
        return "cpu"
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"


def _commit() -> str:
    asked = ["git", "-C", str(_REPOSITORY), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
