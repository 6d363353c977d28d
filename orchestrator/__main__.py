"""`musetalk-orchestrator`: serve, demo, loadtest, support-bundle, key."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from musetalk_agent.protocol.http import VERSION
from orchestrator.keys import Scope

_EPILOG = """environment of serve:
  LIVEKIT_URL LIVEKIT_API_KEY LIVEKIT_API_SECRET   the LiveKit server
  ORCHESTRATOR_API_KEY                             keys clients may use, separated by commas
  AGENT_URL AGENT_API_KEY                          agents, separated by commas, and their key
optional: PUBLIC_URL LIVEKIT_PUBLIC_URL LIVEKIT_PLAYOUT_DELAY_MS LIVEKIT_INGRESS CORS_ORIGINS ALLOWED_ORIGINS LOG_LEVEL
  keys and tokens  ORCHESTRATOR_KEYS_FILE AUDIT_LOG AUDIO_TOKEN_SECRET VIEWER_TOKEN_TTL_S PAGE_TOKEN_ENABLED PAGE_TOKEN_TTL_S
  webhooks         WEBHOOK_URL WEBHOOK_SECRET ALLOW_PRIVATE_URLS
  conversations    LLM_BASE_URL LLM_MODEL LLM_API_KEY STT_BASE_URL STT_MODEL STT_API_KEY TTS_BASE_URL TTS_MODEL TTS_VOICE
                   TTS_API_KEY REALTIME_BASE_URL REALTIME_MODEL REALTIME_VOICE REALTIME_API_KEY
                   LIVEKIT_INFERENCE_URL LIVEKIT_INFERENCE_API_KEY LIVEKIT_INFERENCE_API_SECRET CONVERSATION_PYTHON
  voices           VOICE VOICES_DIR VOICES_LOADED KOKORO_DIR VOICE_STANDBY LEXICON_FILE SENTENCE_PAUSE_MS PARAGRAPH_PAUSE_MS
                   ELEVENLABS_API_KEY ELEVENLABS_VOICES ELEVENLABS_MODEL ELEVENLABS_SAMPLE_RATE
                   ELEVENLABS_BASE_URL OPENAI_API_KEY OPENAI_BASE_URL OPENAI_VOICES OPENAI_TTS_MODEL OPENAI_TTS_FORMAT
  sessions         SESSION_MAX_S SESSION_IDLE_TTL_S VIEWER_GRACE_S SPEAKER_GRACE_S START_TIMEOUT_S DRAIN_S STORE_PATH REDIS_URL
  recordings       RECORDING_DIR RECORDING_URL RECORDING_DAYS EGRESS_DIR   (with RECORDING_URL also AWS_...)
  avatars          AVATARS_DIR AVATARS_URL AVATARS_MAX AVATARS_BYTES   (with AVATARS_URL also AWS_...)
  renders          RENDERS_DIR RENDERS_QUEUE RENDERS_DAYS   (the first two at the agents too)
  limits           AUDIO_MESSAGE_BYTES AUDIO_BACKLOG_S AUDIO_BYTES_PER_S AUDIO_IDLE_S AVATAR_UPLOAD_BYTES
  agents at Modal  AGENT_POOL=modal MODAL_APP MODAL_AGENT AGENT_WAIT_S AGENT_IDLE_S AGENT_SESSIONS_MAX   instead of AGENT_URL
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="musetalk-orchestrator",
        description="Talking avatars for LiveKit rooms: tokens, sessions, audio and speech.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve the API and the page, configured by the environment",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument(
        "--port", type=int, default=8080, help="port to listen on, 0 for a free one (default: %(default)s)"
    )
    demo = commands.add_parser("demo", help="run LiveKit, an agent and the orchestrator on this machine")
    from musetalk_tools import demo as demonstration

    demonstration.add_arguments(demo)
    loadtest = commands.add_parser("loadtest", help="measure a deployment with sessions, viewers and speech of its own")
    from musetalk_tools.loadtest import thresholds as load_arguments

    load_arguments.add_arguments(loadtest)
    from musetalk_tools import support_bundle

    bundle = commands.add_parser(
        "support-bundle", help="write a zip of settings without secrets, debug answers and logs"
    )
    support_bundle.add_arguments(bundle)
    _add_key(commands.add_parser("key", help="make keys for the keys file"))
    return parser


def _add_key(parser: argparse.ArgumentParser) -> None:
    new = parser.add_subparsers(dest="action", required=True, metavar="ACTION").add_parser(
        "new", help="make a key and print it; only its hash is kept"
    )
    new.add_argument("--name", required=True, help="whose key it is; several keys of one name are one caller")
    new.add_argument(
        "--scope",
        required=True,
        choices=[scope.value for scope in Scope if scope is not Scope.PUBLIC],
        help="what it may do",
    )
    new.add_argument("--file", type=Path, help="keys file to add it to; by default the entry is printed too")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 2 when the environment lacks something."""
    arguments = build_parser().parse_args(argv)
    if arguments.command == "demo":
        from musetalk_tools import demo as demonstration

        return demonstration.run(arguments)
    if arguments.command == "loadtest":
        from musetalk_tools.loadtest import run as loadtest

        return loadtest.run(arguments)
    if arguments.command == "support-bundle":
        from musetalk_tools import support_bundle

        return support_bundle.run(arguments)
    if arguments.command == "key":
        return new_key(arguments.name, Scope(arguments.scope), arguments.file)
    return serve(arguments.host, arguments.port)


def new_key(name: str, scope: Scope, file: Path | None) -> int:
    """Prints a new key, and adds its entry to the file. Returns the exit code."""
    from orchestrator import keys
    from orchestrator.keys import KeysError

    try:
        key, entry = keys.new(name, scope)
        if file is not None:
            keys.add(file, entry)
    except KeysError as error:
        print(f"{file or 'key new'}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{file}: {error.strerror}", file=sys.stderr)
        return 1
    if file is None:
        print(f"entry for the keys file:\n{entry.model_dump_json(exclude_none=True)}\nkey:", file=sys.stderr)
    print(key)
    return 0


def serve(host: str, port: int) -> int:
    """Serves until SIGINT or SIGTERM."""
    from musetalk_agent.protocol import logs
    from orchestrator.app import create_app
    from orchestrator.recovery import check_store
    from orchestrator.routes.context import Context
    from orchestrator.serving import OrchestratorServer, server_config
    from orchestrator.settings import SettingsError, load
    from orchestrator.store.session_store import StoreError

    try:
        settings = load()
        asyncio.run(check_store(settings))
    except (SettingsError, StoreError) as error:
        print(f"{error}\nSee musetalk-orchestrator serve --help.", file=sys.stderr)
        return 2
    logs.configure(settings.log_level)
    app = create_app(settings)

    async def drain() -> None:
        context: Context = app.state.context
        await context.sessions.drain(settings.drain_s)
        context.events.close()

    def listens(port: int) -> None:
        context: Context = app.state.context
        context.address.listens(port)

    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again once all is closed
        OrchestratorServer(server_config(app, settings, host=host, port=port), drain, listens).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
