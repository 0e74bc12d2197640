# Every target does its own set-up: Python 3.11, make and a C compiler are all that has to be there.
.PHONY: demo check test bench bench-tasks bench-scale bench-studies bench-slurm bench-agents soak docs control-plane images wheels agent-file wheelhouse clean help
.DEFAULT_GOAL := help

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONDONTWRITEBYTECODE := 1

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

.venv/.locked: uv.lock pyproject.toml $(wildcard */pyproject.toml) tools/bootstrap
	@tools/bootstrap
	@touch $@

demo: .venv/.locked ## run a study of a thousand tasks on this machine
	@merlin run docs/examples/demo.yaml --local

check: .venv/.locked ## formatter, linter, types, layers, links of the docs
	ruff format --check .
	ruff check .
	ruff format --check tools/control-plane/build && ruff check tools/control-plane/build
	mypy
	mypy tools/control-plane/build
	lint-imports
	mkdocs build --strict --quiet --site-dir .cache/site

test: .venv/.locked ## all tests, on real servers, two processes a core (PYTEST_ARGS='tests/spec -n0': some, one by one)
	pytest -n auto $(PYTEST_ARGS)

bench: bench-tasks bench-scale bench-studies bench-agents ## measure tasks, sizes, studies and a thousand agents

bench-tasks: .venv/.locked ## measure what a task costs, beside HyperQueue, xargs and others, into docs/benchmarks/
	tools/bench-peers
	python tools/bench.py --write docs/benchmarks

bench-scale: .venv/.locked ## measure studies of up to 10⁸ null tasks on a real API server, into docs/benchmarks/
	python tools/bench_scale.py --write docs/benchmarks

bench-studies: .venv/.locked ## measure thousands of studies in one namespace, into docs/benchmarks/
	python tools/bench_studies.py --write docs/benchmarks

bench-slurm: .venv/.locked ## measure how full a mixed study keeps an allocation of a real Slurm, into docs/benchmarks/
	python tools/bench_slurm.py --write docs/benchmarks

soak: .venv/.locked ## kill a random process each second for ten minutes (SOAK_ARGS='--seconds 60 --seed 7' for less, or the same again)
	python tools/soak.py $(SOAK_ARGS)

bench-agents: .venv/.locked ## measure a thousand agents on one server and one operator, into docs/benchmarks/
	python tools/bench_agents.py --write docs/benchmarks

docs: .venv/.locked ## build the documentation into site/
	mkdocs build --strict --site-dir site

control-plane: .venv/.locked ## build and cache kube-apiserver and etcd for the tests
	tools/control-plane/build

images: ## build the two container images with buildah, docker or podman
	tools/images

wheels: .venv/.locked ## build the four distributions into dist/
	.cache/uv/bin/uv build --all-packages --wheel --out-dir dist --quiet

agent-file: .venv/.locked ## build the agent as one file that needs Python only, into dist/
	python tools/onefile dist/merlin-agent.pyz

wheelhouse: .venv/.locked ## collect the agent's wheels in dist/wheelhouse, for a site that reaches no registry
	python tools/onefile --wheelhouse dist/wheelhouse

clean: ## remove what make made in this folder
	rm -rf .venv .cache site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
