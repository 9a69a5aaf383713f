# Each of the first two targets does all its set-up on a fresh machine that has only Python 3.10+.
PYTHON ?= python3
VENV ?= .venv
GRADMIMIC_DATA ?= ../shared/data
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint docs bench clean

demo: $(VENV)/.demo  ## find the mislabelled among scikit-learn's digits, and train a better model
	$(BIN)/python examples/digits.py runs/digits-data
	$(BIN)/gradmimic run examples/digits.yaml

test: $(VENV)/.dev lint  ## everything CI checks
	$(BIN)/pytest -n 2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev  ## the documentation as a site: open site/index.html
	$(BIN)/python -m sphinx -W --keep-going docs site

bench: $(VENV)/.dev  ## every table that the docs quote, but those of gradmimic reproduce; takes hours
	$(BIN)/python benchmarks/figures.py --seeds 3
	$(BIN)/python benchmarks/figures.py --seeds 3 --lr 0.0003
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/log.py
	$(BIN)/python benchmarks/quality.py --data cifar10
	$(BIN)/python benchmarks/quality.py --data banking77
	$(BIN)/python benchmarks/quality.py --data images --seeds 1
	$(BIN)/python benchmarks/lite0_features.py $(GRADMIMIC_DATA)/cifar10n/images_train.parquet features/cifar10_lite0.npy
	$(BIN)/python benchmarks/label_issues.py --features features
	$(BIN)/python benchmarks/label_models.py
	$(BIN)/python benchmarks/stage2.py
	$(BIN)/python benchmarks/references.py --data fashion
	$(BIN)/python benchmarks/references.py --data cifar10
	$(BIN)/python benchmarks/references.py --overhead
	$(BIN)/python benchmarks/trusted.py
	$(BIN)/python benchmarks/transport.py
	$(BIN)/python benchmarks/rotation.py
	$(BIN)/python benchmarks/nearness.py
	$(BIN)/python benchmarks/reader.py
	$(BIN)/python benchmarks/clip.py --seeds 3
	$(BIN)/python benchmarks/clip.py --pixels --seeds 3
	$(BIN)/python benchmarks/clip.py --overhead
	$(BIN)/python benchmarks/clip_score.py
	$(BIN)/python benchmarks/metadata.py
	$(BIN)/python benchmarks/datacomp.py
	$(BIN)/python benchmarks/trainer.py
	$(BIN)/python benchmarks/sft_trainer.py
	$(BIN)/python benchmarks/lora.py
	$(BIN)/python benchmarks/reference_memory.py
	$(BIN)/python benchmarks/sft.py --seeds 3
	$(BIN)/python benchmarks/sft_cost.py
	$(BIN)/python benchmarks/sklearn_classifier.py
	$(BIN)/python benchmarks/scorers.py
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) runs site

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.demo
