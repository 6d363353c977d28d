"""The JavaScript client's JSDoc types, checked by TypeScript in its strictest mode."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.routes.session_routes import StartRequest
from tests.clients.printed import ROOT

WEB = ROOT / "orchestrator" / "web"
COMPILER = Path.home() / ".cache" / "musetalk-livekit" / "node" / "node_modules" / "typescript" / "bin" / "tsc"
OPTIONS = {
    "allowJs": True,
    "checkJs": True,
    "noEmit": True,
    "strict": True,
    "target": "ES2022",
    "module": "ES2022",
    "moduleResolution": "bundler",
    "lib": ["ES2022", "DOM", "DOM.Iterable"],
    "types": [],
    "skipDefaultLibCheck": True,
}
CALLER = """
import { Avatar, AvatarClient, ApiError } from "%s/avatar.js";
const avatar = new Avatar({ video: document.createElement("video") });
avatar.on("state", ({ state, reason }) => { const word: "speaking" | string = state; void word; void reason?.length; });
avatar.on("playback.finished", ({ position_s }) => position_s.toFixed(2));
const session = await avatar.start({ room: "demo", avatar_id: "demo" });
const width: number = session.width;
const { segment }: { segment: number } = await avatar.speak("Hello.");
const { avatar: shown } = await avatar.show({ avatar_id: "ava_0" });
const face: number = shown.face_px;
await avatar.act("wave", { loop: true });
const client = new AvatarClient({ token: "key" });
const added = await client.upload(new Blob(), (fraction) => fraction.toFixed(1), { name: "Ada.mp4" });
const { state } = await client.prepared(added.avatar_id, { onProgress: ({ progress }) => progress.toFixed(1) });
const picture: Blob = await client.poster(added.avatar_id);
const order = await client.render({ avatar_id: added.avatar_id, text: "Ah.", avatar_settings: { mouth_gain: 1.5 } });
const { result } = await client.rendered(order.render_id);
const film: Blob = await client.renderedFilm(order.render_id);
void state, picture, film, result?.seconds.toFixed(1);
"""
WRONG = """
avatar.on("statte", () => {});
avatar.on("state", ({ colour }) => colour);
avatar.start({ avatar_id: "demo" });
avatar.speak(7);
avatar.act({ loop: true });
client.render("Ah.");
new Avatar({});
"""


def check(folder: Path, *files: Path) -> dict[str, list[int]]:
    """Lines of which TypeScript complains, by the file's name."""
    if not COMPILER.is_file() or shutil.which("node") is None:
        pytest.skip("no TypeScript: `tools/setup web` fetches it where npm can be had")
    config = folder / "tsconfig.json"
    config.write_text(json.dumps({"compilerOptions": OPTIONS, "files": [str(file) for file in files]}))
    command = ["node", COMPILER, "-p", config, "--pretty", "false"]
    reported = subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout
    complaints: dict[str, list[int]] = {}
    for file, line in re.findall(r"^(\S[^(]*)\((\d+),\d+\): error", reported, re.MULTILINE):
        complaints.setdefault(Path(file).name, []).append(int(line))
    return complaints


def test_types_hold_together_and_tell_a_wrong_call(tmp_path: Path) -> None:
    modules = [file for file in sorted(WEB.glob("*.js")) if file.name != "pcm-worklet.js"]  # which has other globals
    right, wrong = tmp_path / "right.mts", tmp_path / "wrong.mts"
    right.write_text(CALLER % WEB)
    wrong.write_text(CALLER % WEB + WRONG)
    assert check(tmp_path, *modules, right, wrong) == {"wrong.mts": [21, 22, 23, 24, 25, 26, 27]}


def test_what_may_be_asked_of_a_start_is_what_the_api_takes() -> None:
    source = (WEB / "avatar-client.js").read_text("utf-8")
    typedef = source[
        source.index("StartRequest Body of") : source.index("@typedef", source.index("StartRequest Body of"))
    ]
    assert set(re.findall(r"@property \{[^}]+\} \[?(\w+)", typedef)) == set(StartRequest.model_fields)
