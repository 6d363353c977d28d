# The orchestrator: docker build -f containers/orchestrator.Dockerfile .
FROM python:3.12-slim-bookworm AS build
ARG EXTRAS="voice,redis"
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY musetalk_agent musetalk_agent
COPY orchestrator orchestrator
COPY musetalk_tools musetalk_tools
COPY models models
RUN python -m venv /opt/avatar \
    && /opt/avatar/bin/pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.12-slim-bookworm
COPY --from=build /opt/avatar /opt/avatar
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin avatar \
    && install --directory --owner=10001 --group=10001 /state
ENV PATH=/opt/avatar/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 STORE_PATH=/state/orchestrator.db
USER 10001:10001
VOLUME ["/state"]
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=2)"]
CMD ["musetalk-orchestrator", "serve", "--host", "0.0.0.0", "--port", "8080"]
