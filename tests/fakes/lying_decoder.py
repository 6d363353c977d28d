"""A decoder process that a clip has taken over: what it answers is named by its models folder."""

from __future__ import annotations

import itertools
import json
import sys
import time


def main() -> None:
    """Waits for one request and lies."""
    sys.stdin.readline()
    lie = sys.argv[2]
    print(json.dumps({"begun": True}), flush=True)
    if lie == "nonsense":
        print("this is no answer", flush=True)
    elif lie == "list":
        print("[1, 2, 3]", flush=True)
    elif lie == "endless line":
        while True:
            sys.stdout.write("x" * 10_000)
            sys.stdout.flush()
    elif lie == "endless progress":
        for k in itertools.count():
            print(json.dumps({"progress": ["frames", k, 0]}), flush=True)
    elif lie == "foreign error":
        print(json.dumps({"error": {"kind": "SystemExit", "detail": "x"}}), flush=True)
    elif lie == "long error":
        error = {"kind": "AvatarTooLarge", "detail": "x" * 50_000, "field": None, "limit": None, "value": "y" * 10_000}
        print(json.dumps({"error": error | {"retry_after_s": None}}), flush=True)
    elif lie == "silence":
        time.sleep(600)


if __name__ == "__main__":
    main()
