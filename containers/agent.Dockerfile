# The agent. On a card: docker build --build-arg EXTRAS=musetalk -f containers/agent.Dockerfile .
FROM python:3.12-slim-bookworm AS build
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY musetalk_agent musetalk_agent
COPY orchestrator orchestrator
COPY musetalk_tools musetalk_tools
COPY models models
RUN python -m venv /opt/avatar \
    && /opt/avatar/bin/pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]" \
    && MODELS_DIR=/models /opt/avatar/bin/musetalk-agent fetch-models --quiet

FROM python:3.12-slim-bookworm
ARG EXTRAS=""
# Kernels for a card are built with a C compiler (docs/how-to/operations.md, A card)
# hadolint ignore=DL3008
RUN case "$EXTRAS" in *musetalk*) \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* ;; \
    esac
COPY --from=build /opt/avatar /opt/avatar
COPY --from=build --chown=10001:10001 /models /models
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin avatar \
    && install --directory --owner=10001 --group=10001 /cache
ENV PATH=/opt/avatar/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 MODELS_DIR=/models AVATAR_CACHE_DIR=/cache KERNELS_DIR=/cache/kernels
USER 10001:10001
# /models takes the weights of MuseTalk (`musetalk-agent fetch-models musetalk`), /cache prepared avatars
VOLUME ["/models", "/cache"]
EXPOSE 8090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=960s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8090/health', timeout=2)"]
CMD ["musetalk-agent", "serve", "--host", "0.0.0.0", "--port", "8090"]
