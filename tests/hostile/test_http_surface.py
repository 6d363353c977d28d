"""The whole HTTP surface under schemathesis: every answer is one that the API's description knows, and none a crash."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from orchestrator.tts.voices import Voices
from tests.fakes.stage import API_KEY, stage
from tests.fakes.tone_voice import TonePerWord

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,ignored_auth,missing_required_header"
)
EXAMPLES = 8


async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    voices = Voices("tone:one", synthesizers=[TonePerWord()])
    async with stage(voices=voices, renders_dir=tmp_path / "renders") as running:
        running.agent.sessions_max = 100_000
        description = tmp_path / "openapi.json"  # a file: schemathesis gives an address ten seconds
        description.write_bytes((await running.http.get("/openapi.json")).content)
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("schemathesis")),
            *("run", str(description), "--url", running.url, "--header", f"Authorization: Bearer {API_KEY}"),
            *("--checks", CHECKS, "--max-examples", str(EXAMPLES), "--seed", "5", "--generation-database", "none"),
            *("--no-color", "--warnings", "off", "--no-shrink", "--suppress-health-check", "all"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        reported, _ = await process.communicate()
    assert process.returncode == 0, reported.decode()[-6000:]
