"""Looks things up at Modal, with the credentials of whoever asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any


class ModalCloud:
    """`doctor.Cloud` for the workspace that the credentials belong to. Raises modal's AuthError without any."""

    def __init__(self) -> None:
        self._modal: Any = import_module("modal")
        self._missing = (self._modal.exception.NotFoundError, self._modal.exception.InvalidError)

    def secret(self, name: str, keys: Sequence[str]) -> str | None:
        try:
            self._modal.Secret.from_name(name, required_keys=list(keys)).hydrate()
        except self._missing as error:
            return str(error)
        return None

    def files(self, volume: str) -> Mapping[str, int] | None:
        try:
            entries = self._modal.Volume.from_name(volume).listdir("/", recursive=True)
        except self._modal.exception.NotFoundError:
            return None
        return {entry.path.lstrip("/"): entry.size for entry in entries if entry.type.name == "FILE"}

    def address(self, app: str, server: str) -> str | None:
        try:
            url: str | None = self._modal.Server.from_name(app, server).get_url()
        except self._modal.exception.NotFoundError:
            return None
        return url
