# make quickstart   set up, train the embedded reasoner with soft thoughts, show before and after
# make test         set up, run the tests
# make test-kill    kill training twenty times in a row, in one process, under DDP and under ZeRO-3 (half an hour)
# make test-distributed   the tests of several processes and of two machines alone
# make bench-update   what scoring and feeding thoughts cost, as ratios
# make bench-rollout  what a soft rollout costs on the CPU, as ratios       make bench-gpu   the same on a GPU
# make bench-scale    how a training step grows with length, K, group and vocabulary
# make plan CONFIG=RECIPE   the memory a recipe takes (PLAN="--gpu_gb 80 --accelerate_config ..." for more)
# make table PAPER=soft_grpo   a paper's tables, with what has been run; also PAPER=soft_tokens
# make quality      lint and type-check           make style   format

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEED ?= 0
PAPER ?= soft_grpo
SOURCES := trl_soft examples tests benchmarks

.PHONY: install quickstart test table plan bench-update bench-rollout bench-scale bench-gpu quality style clean test-kill test-distributed

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

plan: $(READY)
	$(BIN)/python -m trl_soft.plan --config $(CONFIG) $(PLAN)

test-kill: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.kill

test-distributed: $(READY)
	$(BIN)/python -m pytest --durations 10 tests/test_accelerate_recipes.py tests/test_distributed.py tests/test_multi_node.py tests/test_slurm.py

bench-update: $(READY)
	$(BIN)/python benchmarks/update.py

bench-rollout: $(READY)
	$(BIN)/python benchmarks/rollout.py

bench-scale: $(READY)
	$(BIN)/python benchmarks/scale.py

# Where torch and transformers are at hand for the device; no environment is made for it.
bench-gpu:
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py

table: $(READY)
	$(BIN)/python -m trl_soft.evaluate.paper_table recipes/papers/$(PAPER).yaml -o outputs/tables

quality: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

style: $(READY)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf $(VENV) build dist outputs *.egg-info
