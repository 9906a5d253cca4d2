# Everything a person or CI does here. `make demo` and `make test` need Python 3.11 and make, nothing else.
PYTHON ?= python3.11
BIN := .venv/bin
LOCKS := requirements/tools.lock.txt requirements/dev.lock.txt
BLACKWELL := .venv-blackwell
BLACKWELL_LOCK := requirements/blackwell-dev.lock.txt

export BENTOML_DO_NOT_TRACK = True
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: setup demo serve doctor test test-blackwell gpu browser image lint types lock bento containerize clean

setup: .venv/ready ## the virtual environment, exactly as locked

.venv/ready: $(LOCKS) pyproject.toml
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/tools.lock.txt
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode $(LOCKS)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: setup ## serve the embedded demo model on 127.0.0.1 and ask it something
	@$(BIN)/zopilot-gpu serve --demo

serve: setup ## serve the real model from the mounted cache on 127.0.0.1
	@$(BIN)/zopilot-gpu serve

doctor: setup ## what will work on this machine and what will not, with the environment of the service
	@$(BIN)/zopilot-gpu doctor

test: setup ## all tests, in two processes; what fails there once more, alone. TESTS=tests/unit for a part
	@$(BIN)/python -m tests.suite $(TESTS)

test-blackwell: $(BLACKWELL)/ready ## unit and twin tests with the packages of the image for RTX 50xx: torch 2.8, triton 3.4
	@$(BLACKWELL)/bin/python -m tests.suite tests/unit tests/twins

$(BLACKWELL)/ready: $(BLACKWELL_LOCK) pyproject.toml .venv/ready
	$(BIN)/uv venv --quiet --allow-existing --python $(PYTHON) $(BLACKWELL)
	$(BIN)/uv pip sync --quiet --python $(BLACKWELL)/bin/python --require-hashes --compile-bytecode $(BLACKWELL_LOCK)
	$(BIN)/uv pip install --quiet --python $(BLACKWELL)/bin/python --no-deps --no-build-isolation --editable .
	touch $@

gpu: setup ## the tests that need a GPU: kernels on the card, and a model by them
	$(BIN)/python -m pytest tests/gpu

browser: setup ## the playground in a real browser; needs chromium (CHROMIUM=/path/to/it)
	$(BIN)/python -m pytest tests/browser/check_playground.py

image: setup ## the images, built, run and asked (tests/image): with Docker, or as root with Debian's buildah and debootstrap
	$(BIN)/python -m pytest -s tests/image/check_image.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

BENTOFILE ?= bentofile.yaml
BACKEND ?= docker

bento: setup ## the bento that `make containerize` makes the image from; BENTOFILE=bentofile.blackwell.yaml for RTX 50xx
	$(BIN)/bentoml build --bentofile $(BENTOFILE)

# From the root directory: BentoML takes no template from outside of the directory that it is called in (its issue 5566). The
# format matters to buildah and podman only: the other one knows no health check.
containerize: bento ## the image, from the newest bento; BACKEND=buildah, podman and so on where there is no Docker
	cd / && BUILDAH_FORMAT=docker $(CURDIR)/$(BIN)/bentoml containerize $$(sed -n 's/^name: //p' $(CURDIR)/$(BENTOFILE)):latest --backend $(BACKEND)

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --custom-compile-command "make lock"

OVERRIDE := --override requirements/blackwell.override.txt

lock: setup ## new locks from pyproject.toml; LOCK_FLAGS=--upgrade for newer versions
	$(LOCK) $(LOCK_FLAGS) --output-file requirements/tools.lock.txt requirements/tools.in
	$(LOCK) $(LOCK_FLAGS) --output-file requirements/runtime.lock.txt --extra runpod pyproject.toml
	$(LOCK) $(LOCK_FLAGS) --output-file requirements/dev.lock.txt --constraint requirements/runtime.lock.txt --extra dev --extra runpod pyproject.toml
	cp requirements/runtime.lock.txt requirements/blackwell.lock.txt  # uv keeps what it finds in the output file, where it can
	$(LOCK) --output-file requirements/blackwell.lock.txt $(OVERRIDE) --extra runpod pyproject.toml
	cp requirements/dev.lock.txt requirements/blackwell-dev.lock.txt
	$(LOCK) --output-file requirements/blackwell-dev.lock.txt $(OVERRIDE) --constraint requirements/blackwell.lock.txt --extra dev --extra runpod pyproject.toml

clean:
	rm -rf .venv $(BLACKWELL)
