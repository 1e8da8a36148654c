# make demo    reconstruct a brain in five ways, side by side (about 6 minutes)
# make test    check style and types, run the tests (about 10 minutes)
# make docs    build the manual as a web site, in build/site
# Each creates .venv and installs the tested versions of what it needs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-random test-faults fuzz gallery docs lock benchmark yardstick paper clean

demo: $(VENV)/installed-demo
	$(BIN)/ddip-pl demo

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not faults" -n auto --dist worksteal

test-slow: $(VENV)/installed-dev
	$(BIN)/pytest -m slow

# Run the tests on generated examples, with new examples in every round: make test-random ROUNDS=100
ROUNDS ?= 20
test-random: $(VENV)/installed-dev
	for round in $$(seq $(ROUNDS)); do \
		OMP_NUM_THREADS=1 $(BIN)/pytest -m "hypothesis and not slow" --hypothesis-profile random -n auto --dist worksteal || exit 1; \
	done

# Kill whole runs at random points and repeat them; the results must be bit for bit the same: make test-faults KILLS=200
KILLS ?= 60
test-faults: $(VENV)/installed-dev
	KILLS=$(KILLS) OMP_NUM_THREADS=1 $(BIN)/pytest -m faults tests/test_faults.py

# Damage and edit files of every format at random, and check that each is refused or gives data: make fuzz CASES=20000
CASES ?= 2000
fuzz: $(VENV)/installed-dev
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzz.many --cases $(CASES)

# The pictures of docs/gallery.md
gallery: $(VENV)/installed-dev
	cd docs/gallery && export PATH=$(CURDIR)/$(BIN):$$PATH && \
	for program in ../../examples/gallery/[!h]*.py; do python $$program || exit 1; done
	cd docs/gallery && rm -rf head.nii.gz kspace.npy many runs scans sweep

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

# What docker/ installs, with hashes: everything but PyTorch, and PyTorch with CUDA. Run it after constraints.txt has changed.
LOCK := uv pip compile --constraint constraints.txt --generate-hashes --no-annotate --no-header --quiet \
	--python-version 3.11 --python-platform linux
lock: $(VENV)/installed-lock
	$(BIN)/$(LOCK) pyproject.toml --override docker/without-torch.txt --output-file docker/requirements.txt
	echo torch | $(BIN)/$(LOCK) - --output-file docker/torch-cuda.txt

benchmark: $(VENV)/installed-dev
	$(BIN)/python benchmarks/phantoms.py
	$(BIN)/python benchmarks/projector.py

# Measure a prior: make yardstick PRIOR=FILE VOLUMES="--volume A.nii.gz LOW HIGH --volume B.nii.gz"
PRIOR ?= ddip_pl/weights/ellipses_128.safetensors
yardstick: $(VENV)/installed-dev
	$(BIN)/python benchmarks/prior.py $(PRIOR) $(VOLUMES)

# The paper's tables: make paper CT=chest.nii.gz MR=head.nii.gz. It takes hours, and goes on where it was interrupted.
SLICES ?= 4
paper: $(VENV)/installed-dev
	@test -n "$(CT)" -a -n "$(MR)" || { echo "make paper needs two volumes: make paper CT=chest.nii.gz MR=head.nii.gz"; exit 2; }
	@ls -d $(CT) $(MR) > /dev/null
	$(BIN)/ddip-pl benchmark --tasks sv_ct --methods configs/paper/sv_ct.yaml --volumes $(CT) --slices $(SLICES) --output outputs/paper
	$(BIN)/ddip-pl benchmark --tasks mri_3d --methods configs/paper/mri_3d.yaml --volumes $(MR) --slices $(SLICES) --output outputs/paper
	$(BIN)/ddip-pl benchmark --tasks csmri --methods configs/paper/csmri.yaml --volumes $(MR) --slices $(SLICES) --output outputs/paper

clean:
	rm -rf $(VENV)

$(VENV)/installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@
