# make run    the main job: seven quick proofs on bundled real data, the table, the HTML report
# make test   the test suite      make lint   ruff and mypy      make bench   against timm, torchvision, MONAI, PyG
# make evidence   golden records and proofs into the snapshot that README, docs and `offprint show` read
# make docs   the site            make clean
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
FIRST := convnext swin-unetr cfsr dagnn gradient-noise eigen-cam concept-pruning

.PHONY: run test lint bench evidence docs clean setup
setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@echo "setting up .venv: the first time this fetches about 3 GB and takes a few minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -c constraints.txt -e '.[dev]'
	@touch $@

.venv/.docs: .venv/.ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

run: .venv/.ready
	@$(BIN)/offprint prove $(FIRST) --quick --report report.html

test: .venv/.ready
	@$(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.ready
	@$(BIN)/python -m benchmarks

evidence: .venv/.ready
	@$(BIN)/python tools/evidence.py
	@$(BIN)/python tools/readme.py

docs: .venv/.docs
	@$(BIN)/python tools/docs.py
	@$(BIN)/mkdocs build --strict --quiet -f build/mkdocs.yml

clean:
	rm -rf .venv build dist site docs/papers docs/api runs lightning_logs report.html .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
