# Every command of the suite. `make` lists them; each one builds .venv by itself when needed.
# No environment has to be activated, and whatever is activated is not used.

RUN     ?= visual_opsd
MODEL   ?=
DATA    ?=
SET     ?=
DRY     ?=
QUICK   ?=
VERIFY  ?=
PYTHON  ?= python3
$(foreach flag,DRY QUICK VERIFY,$(eval override $(flag) := $(filter-out 0,$($(flag)))))

VENV   := .venv
STAMP  := $(VENV)/.installed
LOOK   := $(VENV)/.notebooks
PY     := $(VENV)/bin/python
OF     := $(if $(MODEL),"model=$(MODEL)") $(if $(DATA),"data.source=$(DATA)")
RANKS  := $(PY) -m torch.distributed.run --standalone --nproc-per-node
# Twice quiet: errors only. Warnings here are about the machine's package sources, by the hundred.
PIP    := $(PY) -m pip --disable-pip-version-check --no-input -qq

.DEFAULT_GOAL := help
.PHONY: help install demo pretrain-tiny reproduce-tiny four-tasks second-bases ablate-noise train train-8gpu train-tiny-2rank export test-distributed soak evaluate evaluate-twins kl-gap attention draw-thoughts own-answers bench notebooks test-notebooks gallery test test-oracle check format clean
.DELETE_ON_ERROR:

# A flag that is silently ignored would start the very run it was meant to hold back.
ifneq ($(strip $(DRY)),)
ifneq ($(filter-out train-8gpu train-tiny-2rank ablate-noise,$(MAKECMDGOALS)),)
$(error DRY=1 is read by train-8gpu, train-tiny-2rank and ablate-noise alone)
endif
endif
ifneq ($(strip $(QUICK)),)
ifneq ($(filter-out test-distributed test-notebooks ablate-noise,$(MAKECMDGOALS)),)
$(error QUICK=1 is read by test-distributed, test-notebooks and ablate-noise alone)
endif
endif

help:  ## Show this list
	@echo "Usage: make COMMAND [VARIABLE=value ...]"
	@echo
	@grep -hE '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z0-9-]+):.*## /  \1\t/' | expand -t 20
	@echo
	@echo "Variables"
	@echo "  RUN=name          experiment: experiments/<name>.yaml (default $(RUN))"
	@echo "  MODEL=folder      checkpoint folder, a downloaded one too (default: the shipped tiny base)"
	@echo "  DATA=folder       data set to score on (default: held-out mazes)"
	@echo "  SET=\"key=value\"   overrides of the configuration, several with spaces between"
	@echo "  DRY=1             only the plan (train-8gpu, train-tiny-2rank, ablate-noise)"
	@echo "  QUICK=1           the part for CI (test-distributed, test-notebooks); a few steps of every arm (ablate-noise)"
	@echo "  PYTHON=python3.x  interpreter that .venv is made with, 3.11 or newer"

install: $(STAMP)  ## .venv with everything the other commands need (they call it themselves)

demo: $(STAMP)  ## The whole story from the shipped base: gap, distil, compare; runs/demo/report.md
	$(PY) -m experiments.demo $(SET)

pretrain-tiny: $(STAMP)  ## Train the shipped base again from nothing (VERIFY=1: compare with its scores)
	$(PY) -m experiments.pretrain_tiny $(if $(VERIFY),--verify) $(SET)

reproduce-tiny: $(STAMP)  ## The long recipe, up to the real VSP mazes; runs/reproduce-tiny/
	$(PY) -m experiments.reproduce_tiny $(SET)

four-tasks: $(STAMP)  ## The tiny base on all four tasks: accuracy against chance, K_gen by category; runs/four-tasks/
	$(PY) -m experiments.four_tasks $(SET)

second-bases: $(STAMP)  ## Three more bases for ablate-noise: without corrupted VTs, without drawing, told answers
	$(PY) -m experiments.second_bases $(SET)

ablate-noise: $(STAMP)  ## Every control, several seeds, verdicts; runs/ablate-noise/report.html (QUICK=1: a few steps of each)
	$(PY) -m experiments.ablate_noise "RUN=$(RUN)" "QUICK=$(QUICK)" "DRY=$(DRY)" $(if $(MODEL),"model=$(MODEL)") $(SET)

train: $(STAMP)  ## One experiment: make train RUN=visual_opsd SET="seed=7"
	@test -f "experiments/$(RUN).yaml" || { echo "make train: no experiments/$(RUN).yaml; RUN= is one of: $$(cd experiments && find . -name '*.yaml' | sed 's|^\./||; s|\.yaml$$||' | sort | tr '\n' ' ')"; exit 2; }
	$(PY) -m experiments.train "experiments/$(RUN).yaml" $(OF) $(SET)

train-8gpu: $(STAMP)  ## Visual-OPSD on ThinkMorph-7B, 8 GPUs, DeepSpeed ZeRO-3 (DRY=1: the plan, without GPU or files)
	$(PY) -m experiments.plan experiments/thinkmorph_7b.yaml name=train-8gpu $(OF) $(SET)
	$(if $(DRY),,$(RANKS) 8 -m experiments.train experiments/thinkmorph_7b.yaml name=train-8gpu $(OF) $(filter-out step_seconds=%,$(SET)))

train-tiny-2rank: $(STAMP)  ## The same entry point on two CPU ranks of this machine
	$(PY) -m experiments.plan experiments/tiny_2rank.yaml $(SET)
	$(if $(DRY),,OMP_NUM_THREADS=1 $(RANKS) 2 -m experiments.train experiments/tiny_2rank.yaml $(filter-out step_seconds=%,$(SET)))

export: $(STAMP)  ## A model folder out of the newest checkpoint: RUN=run folder
	$(PY) -m experiments.export "$(RUN)" $(SET)

evaluate: $(STAMP)  ## Score a checkpoint on mazes in three ways, or on benchmarks: MODEL=folder DATA=folder
	$(PY) -m experiments.evaluate $(if $(MODEL),"MODEL=$(MODEL)") $(if $(DATA),"DATA=$(DATA)") $(SET)

evaluate-twins: $(STAMP)  ## The nine benchmarks' table from files written here; runs/evaluate-twins/scores.json
	$(PY) -m experiments.evaluate_twins $(if $(MODEL),"MODEL=$(MODEL)") $(SET)

kl-gap: $(STAMP)  ## K_gen (Eq. 4) by category: MODEL=folder (SET="BASE=folder": and how much of it has closed)
	$(PY) -m experiments.kl_gap $(if $(MODEL),"MODEL=$(MODEL)") $(SET)

attention: $(STAMP)  ## Where thoughts look, and what hiding a VT does: MODEL=folder; runs/attention/
	$(PY) -m experiments.attention $(if $(MODEL),--model "$(MODEL)") $(if $(DATA),--data "$(DATA)") $(SET)

draw-thoughts: $(STAMP)  ## Fill the cache of drawn visual thoughts for RUN=
	$(PY) -m experiments.draw_thoughts "experiments/$(RUN).yaml" $(OF) $(SET)

own-answers: $(STAMP)  ## The start weights' own drawn answers to RUN='s problems, for SFT without labels
	$(PY) -m experiments.own_answers "experiments/$(RUN).yaml" $(OF) $(SET)

bench: $(STAMP)  ## What batching and the step cache save; runs/bench/summary.json
	$(PY) -m experiments.bench $(SET)

notebooks: $(LOOK)  ## Start JupyterLab on notebooks/
	$(VENV)/bin/jupyter lab notebooks

test-notebooks: $(LOOK)  ## Execute the notebooks, and look at one through a browser (QUICK=1: the part for CI)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "notebooks $(if $(QUICK),and not slow)" tests/notebooks

gallery: $(STAMP)  ## The exhibits as pictures, from finished runs; docs/gallery/
	$(PY) -m experiments.gallery $(SET)

test: $(STAMP)  ## Laptop tests, shapes checked
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not checkpoint and not distributed and not notebooks"

test-distributed: $(STAMP)  ## Two CPU ranks under ZeRO-3; runs/distributed/summary.json (QUICK=1: the part for CI)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "distributed and not soak $(if $(QUICK),and not slow)" tests/distributed

soak: $(STAMP)  ## Twenty SIGKILLs at random moments; every resume ends with the same bits
	OMP_NUM_THREADS=1 $(PY) -m pytest -m soak tests/distributed

test-oracle: $(STAMP)  ## Equality with the reference vectors in VISUAL_OPSD_ORACLE
	$(PY) -m pytest -m oracle

check: $(STAMP)  ## Format, lint, types, import arrows
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

format: $(STAMP)  ## Format the code and fix what can be fixed
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean:  ## Remove caches of tools; runs/ and .venv stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name $(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first: once it is there, no later package asks for another build of it. A .venv left
# half made by an interrupted run has no working pip and is made again.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Visual-OPSD needs Python 3.11 or newer; '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1 || true)."; \
	    echo "Name a newer one, for example: make install PYTHON=python3.12"; exit 2; }; \
	  echo "Making $(VENV) with $$("$(PYTHON)" --version)"; \
	  "$(PYTHON)" -m venv --clear $(VENV) || { echo "No venv: on Debian and Ubuntu, install python3-venv."; exit 2; }; \
	fi
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(VENV) holds $$($(PY) --version), and Python 3.11 or newer is needed: remove $(VENV) and run make again."; exit 2; }
	@echo "Installing PyTorch, then everything else, into $(VENV): some minutes"
	@$(PIP) install -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# JupyterLab and what drives a browser: a minute and more that `make demo` does not wait for.
$(LOOK): $(STAMP)
	@echo "Installing JupyterLab into $(VENV): a minute or two"
	@$(PIP) install -c constraints.txt -e '.[notebooks]'
	@touch $@
