# make demo: fresh machine -> .venv -> the main job on the embedded scenes -> runs/tiny/report/index.html
# make test: fresh machine -> .venv -> lint and tests
PYTHON ?= python3
VENV := .venv
RUN := PYTHONPATH=. $(VENV)/bin/python

.PHONY: demo test slow faults lint clean

$(VENV)/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python -r requirements-dev.txt
	touch $@

demo: $(VENV)/ready
	$(RUN) -m msg_jax.main --config=configs/avp_rpo.py

test: $(VENV)/ready lint
	$(RUN) -m pytest -m "not slow" --numprocesses=2 --dist=loadfile

# make slow: the tests of a minute and more
slow: $(VENV)/ready
	$(RUN) -m pytest -m slow

# make faults: some ten minutes of broken disks, killed processes and poisoned losses, and what became of them
faults: $(VENV)/ready
	$(RUN) benchmarks/faults.py

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .

clean:
	rm -rf runs .cache
