# run    renders test_input.json; needs only Python 3.11 or newer
# test   runs the tests that need only Python packages; test-system those that need system packages
# soak   runs 200 jobs with faults on one worker (15 minutes) and prints the figures
# docs   writes the generated files: tables and drawings in README.md and docs/, .runpod/hub.json and tests.json
# site   builds docs/ as a website in build/site
# check  runs linters, formatter and types, and checks Dockerfile, compose file, workflows, generated files and pages

PYTHON ?= python3
WORKERS ?= 4# on two cores, because half of the time is spent waiting
BIN := .venv/bin
PAGE := 'wan_engine/**/*.js' 'wan_engine/**/*.css'

.PHONY: run test test-system soak docs site check format clean help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed '/^$$/q'

run: .venv/run.ok
	$(BIN)/python handler.py

test: .venv/test.ok
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		-m "not gpu and not slow and not system"

soak: .venv/test.ok
	$(BIN)/python -m pytest -m slow tests/worker_loop/test_soak.py

test-system: .venv/test.ok
	@for need in ffprobe:ffmpeg node:nodejs curl:curl jq:jq awk:mawk g++:g++ unshare:util-linux; do command -v $${need%%:*} >/dev/null || \
		{ echo "test-system needs $${need%%:*}: apt-get install $${need##*:}"; exit 1; }; done
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
		{ echo "test-system needs Chromium: apt-get install chromium"; exit 1; }
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || \
		{ echo "test-system needs PostgreSQL: apt-get install postgresql"; exit 1; }
	@for name in runpod-sdk axe-core; do test -d tests/system/node_modules/$$name || \
		{ echo "test-system needs $$name from npm: npm ci --prefix tests/system"; exit 1; }; done
	$(BIN)/python -m pytest -m "system and not gpu"

docs: .venv/run.ok
	$(BIN)/python -m builder.docs

site: .venv/test.ok
	$(BIN)/zensical build --strict --clean

check: .venv/test.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/oxlint wan_engine
	$(BIN)/oxfmt --check $(PAGE)
	$(BIN)/python -m builder.docs --check
	$(BIN)/zensical build --strict --clean
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/*.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yaml
	$(BIN)/zizmor --offline --no-progress --quiet .github

format: .venv/test.ok
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/oxlint --fix wan_engine
	$(BIN)/oxfmt --write $(PAGE)

clean:
	rm -rf .venv build .cache wan_engine.egg-info outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/run.ok: requirements.txt | .venv/bin/python
	@echo "Installing what the worker needs (once, a few minutes) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/test.ok: requirements.txt tests/requirements.txt | .venv/bin/python
	@echo "Installing what the tests need (once, a few minutes) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@ .venv/run.ok
