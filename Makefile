# make demo: fresh machine -> .venv -> the main job on the embedded scenes -> runs/demo/report/index.html
# make test: fresh machine -> .venv -> lint, types and tests
PYTHON ?= python3
VENV := .venv

.PHONY: demo test slow faults mutants lint types clean

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --editable ".[dev]"
	touch $@

demo: $(VENV)/ready
	$(VENV)/bin/msg-jax train --config=avp_rpo:demo

test: $(VENV)/ready lint types
	$(VENV)/bin/python -m pytest -m "not slow" --numprocesses=2 --dist=loadfile --no-loadscope-reorder

# make slow: the tests of a minute and more
slow: $(VENV)/ready
	$(VENV)/bin/python -m pytest -m slow

# make faults: about ten minutes of broken disks, killed processes and poisoned losses
faults: $(VENV)/ready
	$(VENV)/bin/python benchmarks/faults.py

# make mutants: break the code line by line; a test must notice each time. Half an hour
mutants: $(VENV)/ready
	$(VENV)/bin/python tests/mutants.py

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .

types: $(VENV)/ready
	$(VENV)/bin/pyright

clean:
	rm -rf runs .cache
