"""`musetalk-orchestrator`: serve, demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from musetalk_agent.protocol.version import VERSION

_EPILOG = """environment of serve:
  LIVEKIT_URL LIVEKIT_API_KEY LIVEKIT_API_SECRET   the LiveKit server
  ORCHESTRATOR_API_KEY                             keys clients may use, separated by commas
  AGENT_URL AGENT_API_KEY                          agents, separated by commas, and their key
optional: PUBLIC_URL LIVEKIT_PUBLIC_URL CORS_ORIGINS VOICE SESSION_MAX_S SESSION_IDLE_TTL_S VIEWER_GRACE_S
          AUDIO_MESSAGE_BYTES AUDIO_BACKLOG_S AUDIO_BYTES_PER_S AVATAR_UPLOAD_BYTES LOG_LEVEL
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
    from orchestrator import demo as demonstration

    demonstration.add_arguments(demo)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 2 when the environment lacks something."""
    arguments = build_parser().parse_args(argv)
    if arguments.command == "demo":
        from orchestrator import demo as demonstration

        return demonstration.run(arguments)
    return serve(arguments.host, arguments.port)


def serve(host: str, port: int) -> int:
    """Serves until SIGINT or SIGTERM."""
    import uvicorn

    from musetalk_agent.protocol import logs
    from orchestrator.app import create_app
    from orchestrator.serving import server_config
    from orchestrator.settings import SettingsError, load

    try:
        settings = load()
    except SettingsError as error:
        print(f"{error}\nSee musetalk-orchestrator serve --help.", file=sys.stderr)
        return 2
    logs.configure(settings.log_level)
    uvicorn.Server(server_config(create_app(settings), settings, host=host, port=port)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
