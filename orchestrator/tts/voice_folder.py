"""Finds the usable piper voices in a folder and reads each voice's own description."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from orchestrator.tts.synthesizer import VoiceInfo

FILES_MAX = 256
"""Voices of a folder; further ones are left out."""
SPEAKERS_MAX = 2000
"""Speakers of a voice; the largest public one has 904."""
_DESCRIPTION_BYTES = 4 << 20
_RATES = range(8000, 48_001)
_NAME = re.compile(r"[\w.+-]{1,64}")
_KINDS = ("espeak", "text")
"""How a voice wants its text, of what piper has: the others need models of their own from a hub."""
_UNLOADABLE = "it cannot be loaded"
_log = logging.getLogger(__name__)


class VoiceFolder:
    """`piper:NAME` for each `NAME.onnx` with `NAME.onnx.json` in `path`.

    `scan` reads the disk and is for a thread, one at a time; the rest may be used beside it, on the event loop.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[str, tuple[int, int]] = {}
        self._broken: dict[str, tuple[int, int]] = {}
        self.voices: tuple[VoiceInfo, ...] = ()
        """In the order of their names; as of the last `scan`."""
        self.warnings: dict[str, str] = {}
        """Files that are no voice that can be used: their name, and why."""

    def scan(self) -> bool:
        """Looks at the folder again. Returns whether it has changed. What cannot be used is logged, once a change."""
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._seen = stamps
        voices: list[VoiceInfo] = []
        warnings: dict[str, str] = {}
        for name, stamp in stamps.items():
            if self._broken.get(name) == stamp:
                warnings[f"{name}.onnx"] = _UNLOADABLE
                continue
            self._broken.pop(name, None)
            if len(voices) == FILES_MAX:
                warnings[f"{name}.onnx"] = f"the folder has more than {FILES_MAX} voices"
                break
            try:
                voices.append(describe(self._path / f"{name}.onnx"))
            except (OSError, ValueError) as error:
                warnings[f"{name}.onnx"] = str(error)
        for file, reason in warnings.items():
            if self.warnings.get(file) != reason:
                _log.warning("a voice cannot be used", extra={"file": file, "reason": reason})
        self.voices, self.warnings = tuple(voices), warnings
        return True

    def mark_broken(self, voice: str) -> None:
        """The voice `piper:NAME` could not be loaded: it is left out until its file changes."""
        name = voice.split(":")[1]
        if name in self._seen:
            self._broken[name] = self._seen[name]
            self.voices = tuple(each for each in self.voices if each.name != f"piper:{name}")
            self.warnings = {**self.warnings, f"{name}.onnx": _UNLOADABLE}
            _log.warning("a voice cannot be used", extra={"file": f"{name}.onnx", "reason": _UNLOADABLE})

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Time and size of each model with its description, which together show a change."""
        out: dict[str, tuple[int, int]] = {}
        try:
            for file in sorted(self._path.glob("*.onnx")):
                model, description = file.stat(), file.with_name(file.name + ".json")
                beside = description.stat() if description.exists() else None
                out[file.stem] = (
                    max(model.st_mtime_ns, beside.st_mtime_ns if beside else 0),
                    model.st_size + (beside.st_size if beside else 0),
                )
        except OSError as error:  # a folder or a file that is gone meanwhile
            _log.warning("the folder of voices cannot be read", extra={"reason": error.strerror})
        return out


def describe(model: Path) -> VoiceInfo:
    """The voice of a model, by its description. Raises OSError, and ValueError with a sentence about what is wrong."""
    name, file = model.stem, model.with_name(model.name + ".json")
    if not _NAME.fullmatch(name):
        raise ValueError("its name has other signs than letters, digits and _ . + -")
    if name == "joe":
        raise ValueError("the name joe is that of the voice that is installed: rename the file")
    if not file.exists():
        raise ValueError(f"{file.name} is missing")
    if file.stat().st_size > _DESCRIPTION_BYTES:
        raise ValueError(f"{file.name} has more than {_DESCRIPTION_BYTES} bytes")
    if not model.stat().st_size:
        raise ValueError("it is empty")
    try:
        value: Any = json.loads(file.read_text(encoding="utf-8"))
        return _voice(name, value)
    except (AttributeError, KeyError, RecursionError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file.name} is no description of a piper voice: {type(error).__name__} {error}"[:200]
        ) from None


def _voice(name: str, value: dict[str, Any]) -> VoiceInfo:
    kind = value.get("phoneme_type", "espeak")
    if kind not in _KINDS:
        raise ValueError(f"phoneme_type {str(kind)[:40]!r} is not supported")
    rate = value["audio"]["sample_rate"]
    if not isinstance(rate, int) or rate not in _RATES:
        raise ValueError(f"a sample_rate of {str(rate)[:40]} cannot be played")
    if not isinstance(value["phoneme_id_map"], dict) or not {"^", "_", "$"} <= value["phoneme_id_map"].keys():
        raise ValueError("phoneme_id_map has no ids for ^, _ and $")
    code = value.get("language", {}).get("code") or value["espeak"]["voice"]
    count, table = int(value.get("num_speakers", 1)), value.get("speaker_id_map") or {}
    speakers = [str(each) for each in table] if table else [str(number) for number in range(count)]
    if count > 1 and (len(speakers) > SPEAKERS_MAX or not all(_NAME.fullmatch(each) for each in speakers)):
        raise ValueError(
            f"it has more than {SPEAKERS_MAX} speakers, or their names have other signs than voices' names"
        )
    return VoiceInfo(
        f"piper:{name}",
        str(code).replace("_", "-")[:16],
        "piper",
        rate,
        str(value["audio"].get("quality", ""))[:16],
        tuple(speakers) if count > 1 else (),
    )
