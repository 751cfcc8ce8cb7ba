# Two commands on a machine with Python 3.11+ and pip:  make demo   make test
# libcascade, for programs that are not Python:  make native
# Where PyPI's torch is the CUDA build, see README, "Install".

PYTHON  ?= $(shell command -v python3.11 || command -v python3)
BIN     := .venv/bin
READY   := .venv/.installed
DEMO    := build/demo
JOBS    ?= 2
# TensorRT's real API, for a test that needs neither TensorRT nor a GPU; never installed.
WHEELS  := tensorrt-cu13-bindings tensorrt-cu12-bindings tensorrt-lean-cu13-bindings \
           cuda-bindings cuda-pathfinder

NATIVE  := build/native

export CASCADE_EDGE_CACHE ?= build/cache

.PHONY: demo native test lint nightly clean
.DELETE_ON_ERROR:

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip download --quiet --disable-pip-version-check -c constraints.txt \
	    --no-deps --dest .venv/wheels $(WHEELS)
	touch $@

# The architecture, top to bottom: images, training, adaptation, bundle, proof, speed.
demo: $(READY)
	rm -rf $(DEMO)
	$(BIN)/cascade-train fit --data 'roadworks:day?n=12000' --out $(DEMO)/day \
	    --epochs 7 --lr 1.5e-3 --splits .8,.1,.05,.05
	$(BIN)/cascade-train fit --data 'roadworks:night?n=14000' --out $(DEMO)/night \
	    --init $(DEMO)/day --adapter lora --rank 16 --epochs 5 --lr 2e-3 --splits .45,.13,.28,.14
	$(BIN)/cascade-compile bundle $(DEMO)/night --out $(DEMO)/roadworks.cascade \
	    --alpha 0.01 --delta 0.05 --coverage 0.70
	$(BIN)/cascade-calibrate evaluate $(DEMO)/roadworks.cascade \
	    --data $(DEMO)/night/splits.json --split val_test
	$(BIN)/cascade-bench $(DEMO)/roadworks.cascade \
	    --data $(DEMO)/night/splits.json --split val_test --plot $(DEMO)/bench.png

# libcascade, its examples and its tests.
native:
	runtime/native/install-packages
	cmake -S runtime/native -B $(NATIVE) -DCASCADE_TESTS=ON -DCASCADE_EXAMPLES=ON
	cmake --build $(NATIVE) -j $(JOBS)

test: $(READY)
	$(MAKE) --no-print-directory native || echo 'libcascade is not built: its tests are skipped'
	$(BIN)/python -m pytest -n $(JOBS) -m 'not slow'

nightly: $(READY)
	$(MAKE) --no-print-directory native || echo 'libcascade is not built: its tests are skipped'
	$(BIN)/python -m pytest -n $(JOBS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf .venv build
