# Every target is safe to repeat. Caches live in $(CURVE_CACHE), outside the checkout.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CURVE_CACHE ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/curve
export CURVE_CACHE
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

.PHONY: help setup proto crds docs check unit compiled sim real box test packages tools up down bench bench-peers bench-compare bench-stalls bench-footprint bench-kubernetes chaos playground lock

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/ready ## The Python environment, from the lock file

.venv/ready: requirements.lock pyproject.toml
	@echo "setup: Python environment from requirements.lock (about a minute)"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lock: setup ## Renew requirements.lock from pyproject.toml
	uv pip compile -q --extra dev --no-emit-index-url --generate-hashes pyproject.toml -o requirements.lock
	uv pip compile -q --no-emit-index-url --generate-hashes pyproject.toml -c requirements.lock --python-version 3.11 \
		--custom-compile-command "make lock" -o requirements.runtime.lock

proto: setup ## Regenerate the protobuf modules
	python storage_daemon/curve_storage/proto/generate.py

crds: setup ## Regenerate the CRD and what follows from the operator's models
	python -m curve_operator.crd

docs: setup ## Regenerate docs/cli.md and docs/configuration.md
	python docs/generate.py

check: setup ## Format, lint, types, import layers
	ruff format --check .
	ruff check .
	mypy
	lint-imports

unit: setup ## The fast tests
	python tests/suite.py unit

packages: setup ## Debian packages of the box and of tests on real devices, where they are missing
	python -m e2e.box packages

tools: setup packages ## Go programs of the test cluster (etcd, containerd, Kubernetes …), cached
	python -m e2e.box tools

compiled: build/compiled/ready ## The data path's modules compiled by mypyc, in build/compiled (for PYTHONPATH)

build/compiled/ready: .venv/ready setup.py $(shell find storage_daemon operator csi -name '*.py')
	@echo "compiled: C extensions of the hot modules (2 to 5 minutes)"
	@rm -rf build/compiled build/lib build/lib.* build/bdist.*
	@CURVE_COMPILE=1 pip install -q --disable-pip-version-check --no-deps --no-build-isolation --no-index \
		--target build/compiled .
	@touch $@

sim: setup ## Simulations and crash sweeps as in CI; SEEDS=100000 [KIND=consensus]: so many seeds, resumable
	$(if $(SEEDS),python tests/sim/run_seeds.py --seeds $(SEEDS) $(if $(KIND),--kind $(KIND)),python tests/suite.py sim)

real: tools ## Tests with real processes: etcd, FUSE, loop devices, playgrounds, csi-sanity
	python tests/suite.py real

box: tools ## Tests on a real Kubernetes of three nodes
	python tests/suite.py box

test: check tools compiled ## Everything CI runs
	python tests/suite.py

up: setup ## The main job: Curve on a real Kubernetes on this machine, from nothing to data read back
	python -m e2e.mainjob up

down: setup ## Take it down and leave nothing behind
	python -m e2e.mainjob down

chaos: tools ## Real processes, verified load and faults for MINUTES (60); SEED repeats a schedule
	python -m e2e.chaos --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED))

bench: tools compiled ## fio on the raw disk, an attached volume and NBD, with ratios; RECORD=1 adds it to bench/history.jsonl
	PYTHONPATH=$(CURDIR)/build/compiled python -m bench.block $(if $(RECORD),--record)

bench-peers: tools ## The same beside Ceph and GlusterFS on the same disk (installs their Debian packages)
	python -m bench.peers $(if $(SYSTEMS),--systems $(SYSTEMS))

bench-compare: tools ## Two commits alternately: make bench-compare A=main~1 B=main JOBS=write_4k_qd32
	@test -n "$(A)" -a -n "$(B)" || { echo "bench-compare: say which commits: make bench-compare A=main~1 B=main"; exit 2; }
	python -m bench.compare $(A) $(B) $(if $(JOBS),--jobs $(JOBS)) $(if $(ROUNDS),--rounds $(ROUNDS))

bench-stalls: tools ## Longest wait of I/O when a chunkserver, an MDS or a data process dies
	python -m bench.stalls

bench-footprint: tools ## Memory per chunkserver, idle CPU of a cluster
	python -m bench.footprint

bench-kubernetes: setup ## PVC to Bound, pod to Ready, 100 PVCs at once, on what `make up` has started
	python -m bench.kubernetes

playground: setup ## A whole cluster as local processes
	curve playground up
