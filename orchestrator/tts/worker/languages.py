"""Detects the language of a text with py3langid: a naive Bayes classifier over n-grams of bytes (80 MB in memory, 1 ms a
sentence)."""

from __future__ import annotations

import importlib
import threading
from typing import Any


class LanguageRanking:
    """Ranks languages. The model is loaded in a thread from `start` on, or when it is first asked (1 s)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._identifier: Any = None
        self._missing = False

    def start(self) -> None:
        """Loads the model meanwhile."""
        threading.Thread(target=self._load, daemon=True).start()

    def rank(self, text: str, languages: list[str]) -> list[tuple[str, float]]:
        """The likeliest of `languages` (ISO 639-1) first, with their shares of 1; empty where py3langid is not installed."""
        self._load()
        if self._missing:
            return []
        known = [each for each in languages if each in self._identifier.labels]
        with self._lock:
            self._identifier.set_languages(known)
            try:
                return [(language, float(share)) for language, share in self._identifier.rank(text)]
            finally:
                self._identifier.set_languages(None)

    def _load(self) -> None:
        with self._lock:
            if self._identifier is not None or self._missing:
                return
            try:
                langid = importlib.import_module("py3langid.langid")
            except ImportError:
                self._missing = True
                return
            self._identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
