# Everything a newcomer needs: `make demo`, `make test`. Both make .venv first; neither needs anything installed by hand
# but Python 3.11 or 3.12 with venv, and make.
# Python built without the system's headers lacks some of these; found out later, gigabytes would be installed for nothing.
MODULES := venv, ensurepip, sqlite3, lzma, bz2, zlib, ssl, ctypes
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys, $(MODULES); sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# `make demo CPU_WHEELS=URL`, where there is no GPU: torch without CUDA from this index, and no CUDA libraries.
CPU_WHEELS ?=
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: demo test chaos cluster mutants lint format reference lock clean

demo: .venv/ready
	@$(RUN) snakemake --cores all

test: .venv/ready lint
	$(RUN) pytest

# The long form of tests/test_chaos.py; CRNET_CHAOS_SEED draws the same kills again.
chaos: .venv/ready
	$(RUN) CRNET_CHAOS_KILLS=$${CRNET_CHAOS_KILLS:-40} pytest tests/test_chaos.py

# Through a real SLURM, whose jobs and nodes are ended: CRNET_CLUSTER names a script that starts one, 1 is one that runs.
cluster: .venv/ready
	@$(PIP) --editable '.[slurm]'
	$(RUN) CRNET_CLUSTER=$${CRNET_CLUSTER:-1} pytest tests/test_cluster.py

# Faults planted in the core by mutmut, whose survivors are listed: some minutes a file, so one room or file at a time.
MUTANTS ?= crnet.metrics.iou.*
mutants: .venv/ready
	@$(PIP) mutmut==3.8.1
	$(RUN) mutmut run "$(MUTANTS)"
	$(RUN) mutmut results

lint: .venv/ready
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) snakefmt --check Snakefile workflow
	$(RUN) snakemake --lint > /dev/null
	$(RUN) lint-imports --no-cache --no-logo

format: .venv/ready
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(RUN) snakefmt Snakefile workflow

.venv/ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or 3.12 with the modules $(MODULES) as python3, python3.11 or python3.12; or name one: make PYTHON=..." >&2; exit 1; }
	@echo "make: installing pinned versions into .venv, some minutes, $(if $(CPU_WHEELS),about 2 GB,about 5.6 GB; without a GPU a third will do: see CPU_WHEELS in README.md)."
	@$(PYTHON) -m venv .venv
ifneq ($(CPU_WHEELS),)
	@grep -E '^torch(vision)?==' requirements.lock > .venv/torch.txt
	@grep -vE '^(torch|torchvision|triton|nvidia-|cuda-)' requirements.lock > .venv/others.txt
	@$(PIP) --no-deps --index-url $(CPU_WHEELS) --requirement .venv/torch.txt
	@$(PIP) --no-deps --requirement .venv/others.txt
else
	@$(PIP) --requirement requirements.lock
endif
	@$(PIP) --no-deps --editable .
	@touch $@

reference: .venv/ready
	$(RUN) crnet reference > reference.new
	mv reference.new docs/reference.md

# Exact versions for Python 3.11 and 3.12 on every platform; environment.yml carries the same list for conda.
lock: .venv/ready
	$(BIN)/python -m pip install --quiet uv
	$(RUN) uv pip compile pyproject.toml --extra test --extra timm --universal --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --output-file requirements.lock
	{ sed '/- pip:/q' environment.yml; sed 's/.*/      - "&"/' requirements.lock; } > environment.new
	mv environment.new environment.yml

clean:
	rm -rf .venv work logs .snakemake mlflow.db* mlruns
