# Every target sets up what it needs in .venv: `make test` works on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard CMakeLists.txt cmake/* setup.py pyproject.toml scripts/build_paths.py csrc/*.* csrc/*/*.* csrc/*/*/*.*)

# Threads of OpenMP that wait without spinning, as test processes share the cores. Not for `bench`:
# to wake such a thread takes 50 us.
test lint test-op test-random test-machines test-sanitized: export OMP_WAIT_POLICY = PASSIVE

.PHONY: help
help:
	@echo "make build      build the kernels and install the package into .venv"
	@echo "make demo       align a small language model to two conflicting rewards (ARGS=--quick: 90 s)"
	@echo "make demo-full  the whole experiment: both pairs of rewards, five seeds"
	@echo "make test       lint, then all tests"
	@echo "make test-op OP=gae  one op's tests, without the linters (ARGS=\"-k emulated\")"
	@echo "make test-random  every property on N=500 random examples (SEED=, ARGS=\"-k gram\")"
	@echo "make test-machines  the tests as on other processors, as a table (ARGS=\"--levels 1 3\")"
	@echo "make test-sanitized  the CUDA kernels on the host, under ASan and UBSan (4 to 8 minutes)"
	@echo "make test-verl  the plug-in in verl, in an environment of its own"
	@echo "make test-deepspeed  token space under ZeRO, in an environment of its own"
	@echo "make test-install  an sdist built and checked, and builds that pip isolates (4 minutes)"
	@echo "make test-large a tensor of over 2^31 elements (10 GiB of free memory)"
	@echo "make lint       ruff, mypy, clang-format"
	@echo "make golden     accept the registers and shared memory of the CUDA kernels as built"
	@echo "make bench      the timing suites, against the budgets"
	@echo "make cuda-library  the CUDA library alone, to bring to a GPU: scripts/gpu_run.md"
	@echo "make gpu        with a GPU: the stages of that page (ARGS=\"first test\")"
	@echo "make gpu-dry    the same stages without a GPU, on little: that the script holds (4 minutes)"
	@echo "make wheel      a wheel in dist/"
	@echo "make clean      remove .venv and everything built"

# --- setting up ----------------------------------------------------------------------------------

# Its stamp holds where it was made: the scripts of an environment that was moved or copied with its
# folder are those of where it was.
MOVED := $(filter-out $(CURDIR),$(shell cat $(VENV)/.installed 2>/dev/null))
$(VENV)/.installed: requirements.txt $(if $(MOVED),FORCE)
	@sh scripts/check_tools.sh $(PYTHON)
	$(if $(MOVED),rm -rf $(VENV))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	pwd >$@

# What the build reads of the environment: a change builds again.
ENVIRONMENT = env | sort | \
  grep -E '^((CXX|CPP|LD|CUDA)FLAGS|CXX|CUDA_(HOME|PATH)|CUDACXX|CUDAHOSTCXX|PYTORCH_NVCC|TORCH_CUDA_ARCH_LIST|PAMA_(CUDA|KERNELS))='
$(VENV)/.environment: $(VENV)/.installed FORCE
	@$(ENVIRONMENT) | cmp -s - $@ || { $(ENVIRONMENT) >$@ || true; }
.PHONY: FORCE
FORCE:

# PAMA_TESTING compiles the CUDA kernels for the host as well, which the tests run. Another flag
# would compile everything again: warnings stay errors where tests have been built.
$(VENV)/.built: export PAMA_WERROR = $(if $(wildcard $(VENV)/.built-for-tests),ON,OFF)
$(VENV)/.built: $(VENV)/.installed $(VENV)/.environment $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-build-isolation --no-deps --editable .
	touch $@

$(VENV)/.built-for-tests: export PAMA_TESTING = ON
$(VENV)/.built-for-tests: $(VENV)/.installed $(VENV)/.environment $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-build-isolation --no-deps --editable .
	touch $@ $(VENV)/.built

.PHONY: build
build: $(VENV)/.built

# --- using it ------------------------------------------------------------------------------------

.PHONY: demo demo-full
demo: $(VENV)/.built
	$(BIN)/python examples/align_reviews.py $(ARGS)

demo-full: $(VENV)/.built
	$(BIN)/python examples/align_reviews.py --full $(ARGS)

.PHONY: test
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

.PHONY: test-op
test-op: $(VENV)/.built-for-tests
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/test_$(OP).py $(ARGS)

# A fresh seed unless SEED gives one: the same N and SEED draw the same examples of a test, alone or
# among others.
N ?= 500
.PHONY: test-random
test-random: $(VENV)/.built-for-tests
	@seed=$${SEED:-$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}; \
	again="To repeat: make test-random N=$(N) SEED=$$seed ARGS='$(ARGS)'"; \
	echo "$$again"; \
	$(BIN)/python -m pytest -n 2 --dist worksteal -v -m hypothesis --examples $(N) \
	  --hypothesis-seed $$seed $(ARGS); status=$$?; \
	echo "$$again"; exit $$status

.PHONY: test-machines
test-machines: $(VENV)/.built-for-tests
	$(BIN)/python scripts/test_machines.py $(ARGS)

# verl wants a transformers below the one that TRL's tests use, and DeepSpeed replaces packages that
# others pin: environments of their own.
$(VENV)-%/.installed: requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# A test file that finds no library skips, and verl only notes a plug-in that fails to load: import both.
IMPORTS_verl = verl, pama_ops.integrations.verl
IMPORTS_deepspeed = deepspeed
.PHONY: test-verl test-deepspeed
test-verl test-deepspeed: test-%: $(VENV)-%/.installed wheel
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --force-reinstall dist/pama_ops-*.whl
	cd tests && ../$(VENV)-$*/bin/python -c "import $(IMPORTS_$*)"
	cd tests && ../$(VENV)-$*/bin/python -m pytest -o addopts= -W default -m "not slow" test_$*.py $(ARGS)

.PHONY: test-install
test-install: $(VENV)/.installed
	$(BIN)/python -m pytest tests/installs.py $(ARGS)

.PHONY: test-sanitized
test-sanitized: $(VENV)/.built-for-tests
	$(BIN)/python -m pytest -n 2 -m sanitized tests/test_emulator.py $(ARGS)

.PHONY: test-large
test-large: $(VENV)/.built-for-tests
	$(BIN)/python -m pytest -m slow $(ARGS)

.PHONY: lint
lint: $(VENV)/.built-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cuh' 'csrc/*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

.PHONY: format
format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cuh' 'csrc/*.cu' | xargs $(BIN)/clang-format -i

.PHONY: golden
golden: $(VENV)/.built
	$(BIN)/python tests/kernel_resources.py --golden

.PHONY: bench
bench: $(VENV)/.built
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

# What it builds serves any Python and torch.
.PHONY: cuda-library
cuda-library: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON="$(CURDIR)/$(BIN)/python" sh scripts/gpu_check.sh prebuild

# With the python3, torch, nvcc, CMake and ninja on the PATH, not those of .venv.
.PHONY: gpu
gpu:
	sh scripts/gpu_check.sh $(ARGS)

.PHONY: gpu-dry
gpu-dry: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON="$(CURDIR)/$(BIN)/python" GPU_CHECK_DRY=1 \
	  GPU_CHECK_BUILD="$(CURDIR)/build/gpu-dry" sh scripts/gpu_check.sh $(ARGS)

.PHONY: wheel
wheel: $(VENV)/.installed
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

.PHONY: clean
clean:
	rm -rf $(VENV) $(VENV)-verl $(VENV)-deepspeed build dist pama_ops/*.so pama_ops/_no_kernels.txt *.egg-info
