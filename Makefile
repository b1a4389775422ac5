# Two commands do everything: `make demo` and `make test`. Both set up `.venv` first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export DS_ACCELERATOR ?= cpu

.PHONY: demo test punish lint format setup clean
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV): a few minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --upgrade pip -c constraints.txt
	$(BIN)/pip install -qq -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/membart demo

# Two files at once, for two cores: most tests keep one busy, or wait.
test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Minutes of killing: every moment, every world size, every stage; and a few long tests that lie elsewhere.
punish: $(READY)
	$(BIN)/pytest -m punish

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo
