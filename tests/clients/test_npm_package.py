"""The npm package: packed, installed into an empty project, imported, and its types used."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.staticfiles import StaticFiles

from tests.browser.chromium import browser, find_chromium
from tests.clients.printed import ROOT
from tests.fakes.serving import plain_config, serving

pytestmark = (
    pytest.mark.network
)  # thirteen CPU seconds of npm and TypeScript; `test_javascript_types` checks the same modules
NODE = Path.home() / ".cache" / "musetalk-livekit" / "node" / "node_modules"
TOOL = ROOT / "tools" / "npm_package"
CONSUMER = """
import { TalkingAvatar, type TalkingAvatarState } from "musetalk-livekit-avatar";
import { Avatar } from "musetalk-livekit-avatar/avatar";
import { AvatarClient } from "musetalk-livekit-avatar/client";
import { Room } from "livekit-client";
const face = document.createElement("talking-avatar");
face.src = "https://avatars.example";
face.talk = true;
face.getToken = async () => "mtp_";
face.addEventListener("reply", ({ detail }) => detail.text.trim());
face.addEventListener("error", (event) => { const code: string = event.detail.code; void code; });
face.addEventListener("click", (event) => event.preventDefault());
face.on("state", ({ state, activity }) => { const now: TalkingAvatarState = state; void now; void activity?.length; });
const same: TalkingAvatar = face;
await same.start();
await face.chat("Hello.");
const avatar = new Avatar({ video: document.createElement("video"), room: new Room(), token: "mtp_" });
const session = await avatar.startPublic({ avatar_id: "demo" });
const width: number = session.width;
await new AvatarClient({ baseUrl: "https://avatars.example", token: "mtp_" }).chat(session.session_id, "Hello.");
void width;
"""
WRONG = """
face.talk = "yes";
face.addEventListener("reply", ({ detail }) => detail.colour);
face.on("replies", () => {});
face.chat(7);
session.audio_url;
"""
IMPORT = """
import * as face from "musetalk-livekit-avatar";
import * as avatar from "musetalk-livekit-avatar/avatar";
import * as client from "musetalk-livekit-avatar/client";
console.log(JSON.stringify([face, avatar, client].map((module) => Object.keys(module))));
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as npm packs it."""
    needed = all((NODE / name / "package.json").is_file() for name in ("typescript", "livekit-client"))
    if not needed or shutil.which("npm") is None:
        pytest.skip("no npm, TypeScript or livekit-client: `tools/setup web` fetches them where npm can be had")
    folder = tmp_path_factory.mktemp("package")
    run(sys.executable, TOOL / "build.py", folder / "package", cwd=ROOT)
    name = run("npm", "pack", "--silent", folder / "package", cwd=folder).strip()
    return folder / name


@pytest.fixture(scope="module")
def project(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the package, and with the livekit-client of `tools/setup web`."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    options = ("--offline", "--no-audit", "--no-fund", "--silent")
    run("npm", "install", *options, "--legacy-peer-deps", tarball, cwd=folder)
    (folder / "node_modules" / "livekit-client").symlink_to(NODE / "livekit-client")
    return folder


def test_the_package_has_its_files_and_no_livekit_client_of_its_own(tarball: Path) -> None:
    with tarfile.open(tarball) as packed:
        sizes = {member.name.removeprefix("package/"): member.size for member in packed.getmembers()}
        manifest: dict[str, Any] = json.loads(packed.extractfile("package/package.json").read())  # type: ignore[union-attr]
    modules = {name for name in sizes if name.endswith(".js")}
    assert {"dist/talking-avatar.js", "dist/avatar.js", "dist/avatar-client.js", "dist/viewer.js"} <= modules
    assert {f"{name[:-3]}.d.ts" for name in modules} <= sizes.keys() and "dist/index.d.ts" in sizes
    assert {"README.md", "LICENSE", "package.json"} == {name for name in sizes if "/" not in name}
    assert sizes["dist/vendor/livekit-client.esm.js"] < 100 and sum(sizes.values()) < 300_000
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest["version"]) and manifest["license"] == "MIT"
    named = [path for entry in manifest["exports"].values() if isinstance(entry, dict) for path in entry.values()]
    assert {path.removeprefix("./") for path in named} | {"dist/talking-avatar.js"} <= sizes.keys()
    assert list(manifest["peerDependencies"]) == ["livekit-client"] and "dependencies" not in manifest


def test_its_modules_are_those_that_the_orchestrator_serves(tarball: Path) -> None:
    with tarfile.open(tarball) as packed:
        for member in packed.getmembers():
            name = member.name.removeprefix("package/dist/")
            if name.endswith(".js") and not name.startswith("vendor/"):
                file = packed.extractfile(member)
                assert file is not None
                assert file.read() == (ROOT / "orchestrator" / "web" / name).read_bytes()


def test_it_is_imported_where_there_is_no_browser(project: Path) -> None:
    (project / "import.js").write_text(IMPORT)
    face, avatar, client = json.loads(run("node", "import.js", cwd=project))
    assert set(face) == {"ApiError", "TalkingAvatar"}
    assert {"Avatar", "AvatarClient", "ApiError"} <= set(avatar) and {"AvatarClient", "ApiError"} <= set(client)


def test_its_types_help_and_find_mistakes(project: Path) -> None:
    """As bundlers and as Node.js resolve modules, by one run of the compiler: most of what it takes is the same for both.

    The declarations themselves are checked once, as the stricter of the two reads them.
    """
    for module, resolution in (("ES2022", "bundler"), ("NodeNext", "NodeNext")):
        options = {
            "strict": True,
            "noEmit": True,
            "target": "ES2022",
            "module": module,
            "moduleResolution": resolution,
            "lib": ["ES2022", "DOM", "DOM.Iterable"],
            "types": [],
            "skipLibCheck": resolution == "bundler",
            "skipDefaultLibCheck": True,
        }
        folder = project / resolution
        folder.mkdir()
        (folder / "right.ts").write_text(CONSUMER)
        (folder / "wrong.ts").write_text(CONSUMER + WRONG)
        (folder / "tsconfig.json").write_text(
            json.dumps({"compilerOptions": options, "files": ["right.ts", "wrong.ts"]})
        )
    command = ["node", str(NODE / "typescript" / "bin" / "tsc"), "-b", "bundler", "NodeNext", "--pretty", "false"]
    said = subprocess.run(command, cwd=project, capture_output=True, text=True).stdout
    found = re.findall(r"^(\S[^(]*)\((\d+),\d+\): error", said, re.MULTILINE)
    ours = sorted({(file, int(line)) for file, line in found if "livekit-client" not in file})
    first = CONSUMER.count("\n") + 2
    wrong = [(f"{folder}/wrong.ts", line) for folder in ("NodeNext", "bundler") for line in range(first, first + 5)]
    assert ours == wrong, said


@pytest.mark.browser
async def test_it_runs_in_a_page_with_the_sites_own_livekit_client(project: Path) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on PATH")
    modules = {
        "musetalk-livekit-avatar": "/node_modules/musetalk-livekit-avatar/dist/talking-avatar.js",
        "livekit-client": "/node_modules/livekit-client/dist/livekit-client.esm.mjs",
    }
    page = (
        f'<!doctype html><script type="importmap">{json.dumps({"imports": modules})}</script>'
        '<script type="module">import "musetalk-livekit-avatar";</script><talking-avatar id="a"></talking-avatar>'
    )
    (project / "index.html").write_text(page)
    app = Starlette()
    app.mount("/", StaticFiles(directory=project, html=True, follow_symlink=True))
    async with serving(plain_config(app)) as url, browser(program) as tab:
        await tab.open(url + "/")
        await tab.until("customElements.get('talking-avatar') !== undefined")
        assert await tab.run("a.start().catch(({code}) => [code, a.state])") == ["no_token", "failed"]
        assert [error for error in tab.errors if "favicon" not in error] == []
