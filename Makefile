# Uses the environment that is active, else .venv, which is made when it is missing.
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
PYTHON := $(VENV)/bin/python

.PHONY: demo loop check format docs picture screenshot

$(VENV)/.dataengine-dev: pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -e '.[dev]'
	touch $@

demo: $(VENV)/.dataengine-dev
	$(PYTHON) -m dataengine.cli demo

loop: $(VENV)/.dataengine-dev
	$(PYTHON) scripts/loop.py

check: $(VENV)/.dataengine-dev
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) scripts/write_reference.py --check
	$(PYTHON) -m coverage erase
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --dist worksteal --cov --cov-report=
	$(PYTHON) -m coverage report --fail-under 90

format: $(VENV)/.dataengine-dev
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

docs: $(VENV)/.dataengine-dev
	$(PYTHON) scripts/write_reference.py

picture: $(VENV)/.dataengine-dev
	$(PYTHON) scripts/draw_readme_picture.py

screenshot: $(VENV)/.dataengine-dev
	$(PYTHON) scripts/shoot_review_page.py
