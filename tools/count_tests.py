"""Prints lines of code and of tests for each package of the services and the integrations: `python tools/count_tests.py`.

Lines that are not blank count, and beside that code alone: without docstrings and comments, of which packages have more than tests.
Tests lie under `tests/` at the package's own path; those elsewhere that test a package through its doors are added where `ALSO`
says so.
"""

from __future__ import annotations

import ast
import io
import subprocess
import tokenize
from collections import Counter
from pathlib import Path

ALSO = {"musetalk_tools/deploy": ("tests/modal",), "orchestrator/conversation": ("tests/integrations/conversation",)}
SPLIT = ("orchestrator", "integrations", "musetalk_agent", "musetalk_tools")
_NO_CODE = frozenset(
    {
        *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
        *(tokenize.ENCODING, tokenize.ENDMARKER),
    }
)


def package(path: Path) -> str:
    """The package that a file of code belongs to: a directory below one of `SPLIT`, or that one itself."""
    return "/".join(path.parts[:-1][:2])


def code_lines(source: str) -> int:
    """Lines of a module that hold code: no docstring, no comment alone, not blank."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main() -> None:
    """Counts the files that git tracks."""
    code, tests = Counter[tuple[str, bool]](), Counter[tuple[str, bool]]()
    for name in subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout.split():
        path = Path(name)
        text = path.read_text()
        for alone, lines in ((False, sum(bool(line.strip()) for line in text.splitlines())), (True, code_lines(text))):
            if path.parts[0] in SPLIT:
                for of in {package(path), path.parts[0]}:
                    code[of, alone] += lines
            elif path.parts[0] == "tests":
                place = Path(*path.parts[1:])
                counted = {package(place), place.parts[0]}
                counted |= {to for to, also in ALSO.items() if any(path.is_relative_to(folder) for folder in also)}
                counted |= {to.partition("/")[0] for to in counted if to in ALSO}
                for of in counted:
                    tests[of, alone] += lines
                tests["all", alone] += lines
    print(f"{'package':34}{'code':>8}{'tests':>8}{'ratio':>8}{'alone':>8}")
    for name in sorted({name for name, _ in code}):
        _print(name, code, tests, name)
    for alone in (False, True):
        code["all", alone] = sum(code[top, alone] for top in SPLIT)
    _print("together, with all other tests", code, tests, "all")


def _print(title: str, code: Counter[tuple[str, bool]], tests: Counter[tuple[str, bool]], name: str) -> None:
    plain, alone = (tests[name, only] / code[name, only] for only in (False, True))
    print(f"{title:34}{code[name, False]:8}{tests[name, False]:8}{plain:8.2f}{alone:8.2f}")


if __name__ == "__main__":
    main()
