# Leeward's commands. `make demo` and `make test` install what they need.
.PHONY: help setup demo test check faults scenario campaign bench clean
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python

help:
	@echo "make demo                 watch a VM move out of a region that has just been killed, and home again"
	@echo "make test                 lint, types, import contracts, tests"
	@echo "make check                lint, types, import contracts only"
	@echo "make faults               the long fault scenarios: every fault by itself, buffers filled to the brim;"
	@echo "                          then the property tests with examples drawn anew"
	@echo "make scenario NAME=name   a whole scenario on real VMs: workload, nemesis and checker apart"
	@echo "                          (postgres builds a Debian guest once; it takes minutes);"
	@echo "                          consistency-group MUTANT=no-barrier plants a defect, to be noticed"
	@echo "                          kill-everywhere VERBS=machines,item.* plays some of its rounds and verbs;"
	@echo "                          MUTANT=no-undo has drills leave what they booted, to be noticed"
	@echo "make campaign SEEDS=n      the data path at length, with faults, in simulation and for real; MUTANT=all plants defects"
	@echo "make bench [BENCH=name]   measure: tap, guest-impact, rpo, initial-sync, scale, wire, …"
	@echo "make clean                remove the virtual environment and caches"

setup:
	@scripts/setup

demo: setup
	@$(PYTHON) -m demo

check: setup
	@echo "▸ lint" && .venv/bin/ruff check . && .venv/bin/ruff format --check --quiet .
	@echo "▸ types" && .venv/bin/mypy
	@echo "▸ import contracts" && .venv/bin/lint-imports --no-logo

test: check
	@echo "▸ tests" && $(PYTHON) -m pytest -n 2 --dist loadfile

faults: setup
	@$(PYTHON) -m pytest tests/scenarios -m "slow or not slow"
	@$(PYTHON) -m pytest tests/properties --hypothesis-profile exploring

scenario:
	@scripts/setup $(if $(filter postgres,$(NAME)),mmdebstrap)
	@VERBS="$(VERBS)" $(PYTHON) -m scenario "$(NAME)" "$(MUTANT)"

campaign: setup
	@$(PYTHON) -m tests.simulation.command "$(SEEDS)" "$(MUTANT)"

bench:
	@scripts/setup $(if $(filter initial-sync,$(or $(BENCH),initial-sync)),restic borgbackup)
	@$(PYTHON) -m bench $(BENCH)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
