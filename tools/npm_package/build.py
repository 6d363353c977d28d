"""Makes the folder of the npm package from the modules that the orchestrator serves: `build.py OUT`, then `npm pack OUT`.

Types are made of the modules' JSDoc by TypeScript (`tools/setup web`). In place of the vendored livekit-client the package has one
line that passes on the site's own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WEB = ROOT / "orchestrator" / "web"
COMPILER = Path.home() / ".cache" / "musetalk-livekit" / "node" / "node_modules" / "typescript" / "bin" / "tsc"
ENTRIES = ("talking-avatar.js", "avatar.js", "avatar-client.js")
VENDORED = "vendor/livekit-client.esm.js"
SHIM = 'export * from "livekit-client";\n'
_IMPORT = re.compile(r'^(?:import|export)\b[^;]*?\bfrom "\./([^"]+)";', re.MULTILINE)
OPTIONS = {
    "allowJs": True,
    "declaration": True,
    "emitDeclarationOnly": True,
    "strict": True,
    "target": "ES2022",
    "module": "ES2022",
    "moduleResolution": "bundler",
    "lib": ["ES2022", "DOM", "DOM.Iterable"],
    "types": [],
    "skipDefaultLibCheck": True,
}


def modules() -> list[str]:
    """Every module that the entries import, those included."""
    found: set[str] = set()
    waiting = list(ENTRIES)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            if name != VENDORED:
                waiting += _IMPORT.findall((WEB / name).read_text("utf-8"))
    return sorted(found - {VENDORED})


def build(out: Path) -> None:
    """Writes the package into a folder that is empty or not there. Raises CalledProcessError where TypeScript finds a fault."""
    dist = out / "dist"
    (dist / "vendor").mkdir(parents=True)
    for name in modules():
        shutil.copyfile(WEB / name, dist / name)
    (dist / VENDORED).write_text(SHIM)
    shutil.copyfile((WEB / VENDORED).with_suffix(".d.ts"), (dist / VENDORED).with_suffix(".d.ts"))
    config = out / "tsconfig.json"
    config.write_text(json.dumps({"compilerOptions": OPTIONS, "files": [f"dist/{name}" for name in modules()]}))
    subprocess.run(["node", COMPILER, "-p", config, "--pretty", "false"], check=True)
    config.unlink()
    shutil.copyfile(HERE / "index.d.ts", dist / "index.d.ts")
    shutil.copyfile(HERE / "README.md", out / "README.md")
    shutil.copyfile(ROOT / "LICENSE", out / "LICENSE")
    package = json.loads((HERE / "package.json").read_text())
    package["version"] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (out / "package.json").write_text(json.dumps(package, indent=2) + "\n")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
