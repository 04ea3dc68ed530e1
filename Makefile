# `make demo` runs the main job, `make test` installs everything and runs all tests. Both need only Python 3.10-3.13, g++ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built

SOURCES := setup.py pyproject.toml build_defs.bzl $(wildcard kernels/*.cc kernels/*.h trtllm_bridge/*.cc trtllm_bridge/*.h tf_ops/*.cc tf_ops/*.h)

.PHONY: demo test lint bench soak emulate check-slow bazel-test wheel clean

$(INSTALLED): constraints.txt pyproject.toml
	@echo "== virtual environment in $(VENV) (TensorFlow and PyTorch: a few minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) 'setuptools>=77' wheel pybind11 tensorflow
	touch $@

$(BUILT): $(INSTALLED) $(SOURCES)
	@echo "== compiling the core, the bindings and the op library"
	$(PIP) --no-build-isolation -e '.[train,test]'
	touch $@

demo: $(BUILT)
	$(BIN)/genrecall demo $(if $(DATA),--data $(DATA)) --output demo

test: $(BUILT)
	$(BIN)/python -m pytest

lint: $(BUILT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cc' '*.h')

wheel: $(INSTALLED)
	$(BIN)/pip wheel -q --no-build-isolation --no-deps -w dist .

# The systems `make bench` measures beside the engine: they want another Transformers than the project.
BASELINES := $(VENV)-baselines
$(BASELINES)/.installed: benchmarks/baselines.txt
	@echo "== virtual environment of the baselines in $(BASELINES)"
	test -x $(BASELINES)/bin/python || $(PYTHON) -m venv $(BASELINES)
	$(BASELINES)/bin/pip install -q --disable-pip-version-check torch==2.13.0
	$(BASELINES)/bin/pip install -q --disable-pip-version-check -r benchmarks/baselines.txt
	@# optimum asks for torchvision, whose wheel is for another torch and breaks every import of a model.
	$(BASELINES)/bin/pip uninstall -q -y torchvision
	touch $@

# All figures beside their baselines and the machine's floor: about an hour. ARGS="--compare FILE", and others.
bench: $(BUILT) $(BASELINES)/.installed
	GENRECALL_BASELINES_PYTHON=$(abspath $(BASELINES))/bin/python $(BIN)/python benchmarks/bench.py $(ARGS)

# The engine under ThreadSanitizer, then the kernels under AddressSanitizer: 20 minutes each. ARGS="--minutes 2", and others.
soak: $(BUILT)
	PYTHONPATH=tests $(BIN)/python tests/engine_driver.py --sanitizer thread address $(ARGS)

# The kernels' tests in AVX-512, VNNI and AMX instructions, on an emulated machine: about 25 minutes of CPU time, the first time 4 more.
# ARGS="tests/test_int8_gemm.py -k swiglu --guests 1", and others.
emulate: $(BUILT)
	$(BIN)/python emulator/emulated_tests.py $(ARGS)

# What is too slow or too special for `make test`: run by hand before a release.
check-slow: $(BUILT) bazel-test
	$(BIN)/python -m pytest -m slow

bazel-test: $(BUILT)
	bazel/install.sh
	PATH="$(abspath $(BIN)):$$PATH" bazel build //...
	PATH="$(abspath $(BIN)):$$PATH" bazel test //...
	@echo "== the ops linked into a foreign binary, as a TF Serving build does"
	cd bazel/serving_test && PATH="$(abspath $(BIN)):$$PATH" bazel \
	  --bazelrc=../../.bazelrc.local --bazelrc=../../.bazelrc test //...

clean:
	rm -rf build dist demo bench $(VENV) $(BASELINES) *.egg-info
