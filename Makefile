SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(TRL_DEV_CACHE),$(HOME)/.cache/trl-operator)
UV_VERSION := 0.13.8
UV := $(CACHE)/uv-$(UV_VERSION)/bin/uv
PY := .venv/bin/python
VENV := .venv/installed
PYTEST := $(PY) -m pytest -q --durations=5
DEVCLUSTER := PYTHONPATH=hack $(PY) -m devcluster
export UV_CACHE_DIR := $(CACHE)/uv
export WANDB_CACHE_DIR := $(CACHE)/wandb
# The folder operator/ must not hide Python's module of that name.
export PYTHONSAFEPATH := 1

.PHONY: $(shell grep -oE '^[a-z0-9-]+:' $(firstword $(MAKEFILE_LIST)) | tr -d :)

##@ Everyday

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV) ## Create .venv with everything that the tests need

$(VENV): requirements/dev.txt pyproject.toml | $(UV)
	@echo "setup: installing the Python packages into .venv (about 1 minute)" >&2
	@$(UV) venv -q --allow-existing --python python3 .venv
	@$(UV) pip sync -q --require-hashes --python $(PY) requirements/dev.txt
	@$(UV) pip install -q --no-deps --no-build-isolation --python $(PY) -e .
	@touch $@

$(UV):
	@echo "setup: installing uv $(UV_VERSION)" >&2
	@command -v python3 > /dev/null || { echo "setup: python3 is missing: apt-get install --yes python3 python3-venv" >&2; exit 1; }
	@python3 -c 'import sys; sys.exit("setup: Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@python3 -c 'import ensurepip' 2> /dev/null || { echo "setup: Python's ensurepip is missing: apt-get install --yes python3-venv" >&2; exit 1; }
	@python3 -m venv $(CACHE)/uv-$(UV_VERSION)
	@$(CACHE)/uv-$(UV_VERSION)/bin/pip install -q --no-cache-dir uv==$(UV_VERSION)

lint: $(VENV) ## ruff, mypy strict, import-linter, shellcheck, generated files up to date
	@.venv/bin/ruff format -q --check .
	@.venv/bin/ruff check -q .
	@.venv/bin/mypy --no-error-summary
	@said=$$(.venv/bin/lint-imports --no-logo) || { echo "$$said"; exit 1; }
	@.venv/bin/shellcheck $$(git ls-files '*.sh' .ci/run)
	@$(PY) -m trl_operator.api.crd --check
	@echo "lint: ok"

generate: $(VENV) ## Write deploy/crds, the chart's copies and docs/reference from the pydantic models
	@$(PY) -m trl_operator.api.crd

lock: $(UV) ## Resolve the dependencies of pyproject.toml into requirements/
	@hack/lock.sh $(UV)

test: ## Everything that must hold: lint, unit, trainer, controlplane, e2e
	@hack/test.sh lint test-unit test-trainer test-controlplane test-e2e

test-unit: $(VENV) ## Pure functions: plan, render, status, schema
	@$(PYTEST) tests/unit

# Ranks that are killed leave torch's and wandb's temporary files behind.
test-trainer: $(VENV) ## Stages, FSDP2, checkpoints, signals on CPU with two ranks
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; TMPDIR=$$tmp $(PYTEST) tests/trainer

test-controlplane: $(VENV) ## The operator against a real API server and training-operator, without nodes
	@$(PYTEST) tests/controlplane

test-backends: $(VENV) ## All tests of jobs that hold of every backend, on TrainJobs and on PyTorchJobs; which starts sooner
	@$(PYTEST) tests/controlplane/controller/trainjob tests/controlplane/controller/trainjob/rest_of_suite.py
	@BACKEND=trainjob $(PYTEST) tests/e2e/test_jobs.py tests/e2e/test_queues.py
	@BACKEND=pytorchjob $(PYTEST) -s tests/e2e/test_jobs.py tests/e2e/test_queues.py tests/e2e/starting_pairs.py

test-e2e: $(VENV) ## Real pods on the dev cluster: apply to Succeeded, kills, the demo
	@$(PYTEST) tests/e2e

fmt: $(VENV) ## Format and fix the Python code
	@.venv/bin/ruff check -q --fix . || true
	@.venv/bin/ruff format -q .

##@ Demo

demo: $(VENV) ## The main job end to end: cluster, images, helm install, base model, DPOJob of two nodes, comparison
	@PYTHONPATH=hack $(PY) hack/demo.py

##@ Cluster

cluster-up: $(VENV) ## Bring up the dev cluster (CLUSTER=current, CLUSTER=kind: another one)
	@$(DEVCLUSTER) up --yes

cluster-down: $(VENV) ## Take the dev cluster away; images and caches stay
	@$(DEVCLUSTER) down

cluster-status: $(VENV) ## What runs of the dev cluster and how it fares
	@$(DEVCLUSTER) status

cluster-logs: $(VENV) ## The end of the components' logs
	@$(DEVCLUSTER) logs

cluster-engines: $(VENV) ## JobSet, Trainer and Kueue into the running dev cluster
	@$(DEVCLUSTER) install jobset trainer kueue

kubeconfig: $(VENV) ## Print the path of the dev cluster's kubeconfig (make -s kubeconfig)
	@$(DEVCLUSTER) kubeconfig

clean-cache: $(VENV) ## Take the dev cluster away with its images, and all that was built or downloaded
	@$(DEVCLUSTER) clean-cache

invariants: $(VENV) ## What must hold of all jobs, looked at twice in the cluster of KUBECONFIG (ARGUMENTS="--namespace=NAME --quiet")
	@PYTHONPATH=hack $(PY) -m devcluster.invariants $(ARGUMENTS)

##@ Images

images: $(VENV) ## Build the images of trainer and operator into the running dev cluster
	@$(DEVCLUSTER) images

##@ Benchmarks and long tests

kill-test: $(VENV) ## Kill jobs at 200 random instants; each must end as if nothing had happened (about 20 minutes)
	@$(PY) tests/trainer/kill_test.py --kills 200 --report docs/kill-test.md

test-stall: $(VENV) ## Stop ranks of real jobs: who finds it, and how soon the job goes on; writes docs/stall.json (about 8 minutes)
	@STALL_REPORT=docs/stall.json $(PYTEST) tests/e2e/test_jobs.py -k stopped

kill-matrix: $(VENV) ## Kill the operator at every call of every operation, and at random; two leaders (PART=kills, storm, leaders, TrainJob)
	@KILLS=full KILLS_REPORT=docs/kill-matrix.json $(PYTEST) -s $(addprefix tests/controlplane/controller/,$(addprefix alone/test_,kills.py storm.py leaders.py) kueue/test_engine_kills.py) -k "$(PART)"

test-queues: $(VENV) ## 20 jobs through a Kueue quota of 2, 10 preemptions, 5 kills of the operator; writes docs/queue-test.md
	@QUEUES=full $(PYTEST) tests/controlplane/controller/kueue/test_queues.py

bench-preemption: $(VENV) ## Training lost by 50 preemptions with and without checkpoint-aware preemption; writes docs/preemption.md (5 minutes)
	@$(PYTEST) tests/controlplane/controller/kueue/preemption_table.py

# Each part on a control plane of its own, a few minutes long on two quiet cores.
BENCH = PYTHONPATH=hack:tests/bench:tests/controlplane/controller $(PY) tests/bench/controlplane.py --output docs/bench-controlplane.json
bench-controlplane: $(VENV) ## The operator beside a floor client (PART="burst --jobs 300": one part; about 40 minutes)
	@for part in $(if $(PART),"$(PART)","burst --jobs 300" "burst --jobs 1000" "burst --jobs 300 --training-operator" "open --jobs 300" \
		"waiting --jobs 1000" "silent --jobs 1000" "finished --jobs 10000"); do $(BENCH) $$part; done

bench-receiver: $(VENV) ## The receiver under floods, many jobs and hanging writes, for real (about 10 minutes)
	@rm -f docs/bench-receiver.json
	@LOAD=full LOAD_REPORT=docs/bench-receiver.json $(PYTEST) -s tests/controlplane/controller/alone/test_load.py

memory-table: $(VENV) ## The memory estimate against torch's count without a GPU (about 15 minutes on 2 idle cores)
	@PYTHONPATH=$(CURDIR)/tests/bench:$(CURDIR)/tests/trainer $(PY) tests/bench/memory_table.py

bench-trainer: $(VENV) ## Ours against plain TRL: speed, start-up, checkpoints (about 20 minutes on 2 quiet cores; PART=own: the CPU time of its own code alone, 3 minutes)
	@PYTHONPATH=$(CURDIR)/tests/bench $(PY) tests/bench/bench_trainer.py $(PART) --output docs/bench-trainer.json --page docs/performance.md

# The table of docs/performance.md is made of all parts in the file.
bench-speed: $(VENV) ## Without padding against plain TRL, losses compared (PART="dpo reward": these alone; a part about 6 to 9 minutes on 2 quiet cores)
	@PYTHONPATH=$(CURDIR)/tests/bench $(PY) tests/bench/bench_speed.py $(PART) --output docs/bench-speed.json --page docs/performance.md

padding-table: $(VENV) ## Which architectures compute without padding; writes docs/padding-free.md (half a minute)
	@$(PY) tests/bench/padding_table.py docs/padding-free.md

bench-data: $(VENV) ## Rows from the file to the first step: speed, memory, restart (about 12 minutes on 2 quiet cores)
	@PYTHONPATH=$(CURDIR)/tests/bench $(PY) tests/bench/data_size.py --output docs/bench-data.json

# GPU_PYTHON=python3 takes a machine's own PyTorch, with the wheels of `make gpu-wheels` on its PYTHONPATH.
gpu-check: $(if $(GPU_PYTHON),,$(VENV)) ## What must be true on a GPU, in at most 6 minutes on one; writes docs/gpu.md (PART=truth)
	@PYTHONPATH=$(subst $() ,:,$(addprefix $(CURDIR)/,trainer_image tests/gpu tests/bench tests/trainer)):$${PYTHONPATH:-} \
		$(or $(GPU_PYTHON),$(PY)) tests/gpu/gpu_check.py $(or $(PART),truth) $(or $(GPU_ARGUMENTS),--report docs/gpu.md)

gpu-wheels: $(UV) ## What a machine with PyTorch and CUDA lacks for gpu-check, for its Python 3.12, into .wheels
	@hack/gpu-wheels.sh $(dir $(UV))pip

host-memory: $(VENV) ## What loading and exporting take of the host: 4 ranks, all together; into docs/memory.md (about 3 minutes)
	@PYTHONPATH=$(CURDIR)/tests/bench:$(CURDIR)/tests/trainer $(PY) tests/bench/host_memory.py
