"""What the cache throws out: the longest unused, and no more than it must, whatever is kept and used in whatever order."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.avatars.cache import AvatarCache

CAPACITY = 4000
SOURCES = CAPACITY // 4
ACTS = st.lists(
    st.tuples(st.sampled_from(["keep", "keep", "use"]), st.integers(0, 7), st.integers(0, 700)), max_size=30
)


@given(ACTS)
def test_sources_are_thrown_out_by_their_last_use(acts: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = AvatarCache(Path(folder), CAPACITY)
        model: dict[str, tuple[int, int]] = {}  # digest: (last use, size)
        for moment, (act, name, size) in enumerate(acts, 1):
            digest = f"{name:064}"
            if act == "use":
                found = cache.source(digest)
                assert (found is not None) == (digest in model)
                if found is not None:
                    model[digest] = (moment, model[digest][1])
                    os.utime(found, (moment, moment))
                continue
            part = cache.part()
            (part / "source").write_bytes(bytes(size))
            kept = cache.keep_source(part / "source", digest)
            os.utime(kept, (moment, moment))
            cache.discard_part(part)
            model[digest] = (moment, size)
            for old in sorted(model, key=lambda one: model[one][0]):
                if sum(size for _, size in model.values()) > SOURCES and old != digest:
                    del model[old]
            there = {path.name: path.stat().st_size for path in (Path(folder) / "sources").iterdir()}
            assert there == {one: size for one, (_, size) in model.items()}
        assert not list((Path(folder) / "parts").iterdir())
