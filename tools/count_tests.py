"""Prints lines of code and of tests for each package of the services and the integrations: `python tools/count_tests.py`.

Lines that are not blank count. Tests lie under `tests/` at the package's own path; those elsewhere that test a package through its
doors (`tests/hostile`, `tests/modal`, …) are added where `ALSO` says so.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

ALSO = {"musetalk_tools/deploy": ("tests/modal",)}
SPLIT = ("orchestrator", "integrations", "musetalk_agent", "musetalk_tools")


def package(path: Path) -> str:
    """The package that a file of code belongs to: a directory below one of `SPLIT`, or that one itself."""
    return "/".join(path.parts[:-1][:2])


def main() -> None:
    """Counts the files that git tracks."""
    code, tests = Counter[str](), Counter[str]()
    for name in subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout.split():
        path = Path(name)
        lines = sum(bool(line.strip()) for line in path.read_text().splitlines())
        if path.parts[0] in SPLIT:
            code[package(path)] += lines
        elif path.parts[0] == "tests":
            tests[package(Path(*path.parts[1:]))] += lines
    tests.update({to: sum(tests[folder.removeprefix("tests/")] for folder in also) for to, also in ALSO.items()})
    print(f"{'package':34}{'code':>8}{'tests':>8}{'ratio':>8}")
    for name in sorted(code):
        print(f"{name:34}{code[name]:8}{tests[name]:8}{tests[name] / code[name]:8.2f}")
    total = sum(lines for lines in tests.values()) - sum(
        tests[f.removeprefix("tests/")] for a in ALSO.values() for f in a
    )
    print(f"{'together, with all other tests':34}{sum(code.values()):8}{total:8}{total / sum(code.values()):8.2f}")


if __name__ == "__main__":
    main()
