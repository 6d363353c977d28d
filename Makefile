# Each target does its own set-up on a fresh machine (tools/setup) and is quick the second time.
.PHONY: demo test test-network test-ingress check docs npm-package bench bench-conversations bench-reliability bench-gpu accept-gpu setup clean
PY := .venv/bin/python
ARGS ?=
# Compiling every module anew in every process takes a third of the suite's time.
unexport PYTHONDONTWRITEBYTECODE

demo: ## a face that speaks in a browser
	@tools/setup venv models livekit $(if $(findstring --no-conversation,$(ARGS)),,conversation)
	@exec .venv/bin/musetalk-orchestrator demo $(ARGS)

test: ## the test suite, against a real livekit-server and a real Chromium
	@tools/setup torch models livekit browser redis rtmp web pipecat agents conversation bytecode
	@$(PY) -m pytest -n auto -m "not network" $(ARGS)

test-network: ## bad networks made on purpose, and slow tests that add no branch, by three workers; what failed is run once more, alone
	@tools/setup torch models livekit browser redis rtmp network web pipecat agents conversation bytecode
	@$(PY) -m pytest -n 3 -m network $(ARGS) || { echo "What failed is run once more: these networks are real, and the machine may be shared."; \
		$(PY) -m pytest -n 0 -m network --last-failed --last-failed-no-failures none $(ARGS); }

test-ingress: ## the tests against a real LiveKit Ingress, which is built once (four minutes)
	@tools/setup venv models livekit redis network
	@tools/build_ingress >/dev/null
	@$(PY) -m pytest tests/ingress $(ARGS)

check: ## formatting, lint, types, import rules
	@tools/setup torch
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

docs: ## the documentation as a site, in build/docs; a broken link fails (ARGS="--site-dir DIR")
	@tools/setup venv docs
	@NO_MKDOCS_2_WARNING=1 $(HOME)/.cache/musetalk-livekit/envs/docs/bin/mkdocs build --clean --strict $(ARGS)
	@echo "build/docs/index.html"

npm-package: ## the element <talking-avatar> and the JavaScript client for npm, in build/npm
	@tools/setup venv web
	@rm -rf build/npm && mkdir -p build/npm
	@$(PY) tools/npm_package/build.py build/npm/package
	@npm pack --silent --pack-destination build/npm ./build/npm/package

bench: ## one JSON line a figure, with the machine
	@tools/setup venv models livekit
	@$(PY) -m tests.bench $(ARGS)

bench-conversations: ## the wait for an answer, ten conversations at once, a worker that is killed (ARGS="--only standins")
	@tools/setup venv models livekit conversation
	@$(PY) -m tests.bench.conversations $(ARGS)

bench-reliability: ## what faults do: networks made bad on purpose, processes killed (a quarter of an hour)
	@tools/setup venv models livekit redis rtmp network
	@tools/build_ingress >/dev/null
	@$(PY) -m tests.bench.reliability $(ARGS)

bench-gpu: ## the same for MuseTalk, on a machine with CUDA
	@tools/setup torch models
	@$(PY) -m tests.bench.gpu $(ARGS)

accept-gpu: ## everything that only a card can show, in 25 minutes; call it again after a break (FACES=folder films them)
	@tools/setup torch models livekit
	@$(PY) -m tests.bench.accept $(if $(FACES),--faces $(FACES)) $(ARGS)

setup: ## everything the other targets need
	@tools/setup torch models livekit browser redis rtmp web pipecat agents conversation

clean:
	rm -rf .venv
