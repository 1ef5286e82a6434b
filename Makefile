# Everything happens in a virtual environment of the checkout. `make demo` and `make test` need nothing but Python >= 3.10.
#
# torch is installed first, by itself, so that it is the build you want: on Linux the newest one brings several GB of CUDA
# libraries. To give another:  make test TORCH="torch==2.9.1"  or  TORCH="/path/to/torch.whl"; TORCH="" leaves it to pip.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
WORKERS ?= 2

BIN := $(VENV)/bin
# One thread a process: the workers of the test run, and small matrices, lose by more.
ENVIRONMENT := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test test-all docs zoo lint format clean

demo: $(VENV)/ready
	$(ENVIRONMENT) $(BIN)/lightning-lipschitz demo

test: $(VENV)/ready
	$(ENVIRONMENT) $(BIN)/python -m pytest -n $(WORKERS)

test-all: $(VENV)/ready
	$(ENVIRONMENT) $(BIN)/python -m pytest -n $(WORKERS) -m "slow or not slow"

docs: $(VENV)/ready
	$(BIN)/mkdocs build --strict

# torch stands in the same line, as pip would else take the newest torchvision and the torch that it is built for.
zoo: $(VENV)/ready
	$(BIN)/pip install --quiet $(TORCH) --editable '.[zoo]'
	$(ENVIRONMENT) $(BIN)/python benchmarks/public_models.py --write

lint: $(VENV)/ready
	$(BIN)/pip install --quiet ruff mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/pip install --quiet ruff
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(if $(TORCH),$(BIN)/pip install --quiet $(TORCH))
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo_output
