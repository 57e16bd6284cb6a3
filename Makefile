# `make` lists the commands. The first one that needs it makes .venv and installs what requirements.txt pins; after
# that nothing is installed again until requirements.txt or pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
GRADING := $(VENV)/.grading-installed
TORCH := 2.6
TORCHVISION := 0.21
OLDEST := .venv-torch-$(TORCH)
MUTANTS := .venv-mutants

# Two workers of one thread each: when torch has more threads than there are cores, they mostly wait for each other.
# Where a test asks for more, they sleep while they wait. Each worker has its half, file by file, so that what the tests
# of a file share is mostly made once; who is done first takes from the other's half.
THREADS := 1
PYTEST = OMP_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=passive $(PY) -m pytest -q -rs -n 2 --dist worksteal

# Chapters are checked without network: see book/_tools/offline/sitecustomize.py and tests/nbval_kernel.py.
NBVAL = PYTHONPATH="$(CURDIR)/book/_tools/offline:$(CURDIR)/tests" $(PYTEST) book --ignore=book/assignments \
	--dist loadfile -p no:cacheprovider -p nbval_kernel --nbval-current-env --nbval-cell-timeout=600

# With these, torch and numpy compute as on a processor without AVX, or with AVX2 and no more: other sums, other rounding.
OLD_PROCESSOR := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Prescott
HASWELL := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell

# With another backend of matplotlib than its own, Jupyter shows no figure.
unexport MPLBACKEND

.DEFAULT_GOAL := help
.PHONY: help book serve pdf lab execute sync assignments grade figures pagespeed lint test chapters test-portable test-assignments \
	test-gpu test-oldest test-modes test-mutants fuzz repository clean

help: ## List the commands
	@echo "Commands:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.txt pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	touch $@

book: $(READY) ## Build the site; a warning is an error, nothing is executed
	@rm -f _build/html/index.html _build/html/*.pdf
	$(VENV)/bin/jupyter-book build . --all -W --keep-going -n
	@test -f _build/html/index.html || { echo "No site was built." >&2; exit 1; }
	@echo; echo "Open $(CURDIR)/_build/html/index.html in a browser, or type: make serve"

serve: book ## Build the site and serve it at http://127.0.0.1:8000
	$(PY) -m http.server --bind 127.0.0.1 --directory _build/html 8000

# `make book` removes it, and with it the links to it: it must not be older than the pages.
pdf: book ## Build the site, and the whole book as one PDF beside it, with a link on every page (needs Chromium)
	$(PY) book/_tools/make_pdf.py

lab: $(READY) ## Open the chapters in JupyterLab
	$(VENV)/bin/jupyter lab book

execute: $(READY) ## Run the chapters again and store what they print (CHAPTERS="book/02_….ipynb" for some)
	$(PY) book/_tools/execute.py $(CHAPTERS)

sync: $(READY) ## Rewrite the listings in the chapters from the package
	$(PY) book/_tools/sync.py

# What was given on the command line as it is, whatever signs it holds.
quoted = '$(subst ','\'',$(value $(1)))'

# The same pins again, so that the extra changes none of them.
$(GRADING): $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -e ".[grading]"
	touch $@

assignments: $(GRADING) ## Make students' versions, solutions and autograders: make assignments SECRET=…
	$(PY) book/_tools/assignments.py $(if $(value SECRET),--secret $(call quoted,SECRET)) $(ASSIGNMENT)

grade: $(GRADING) ## Grade a folder of notebooks into a CSV: make grade ASSIGNMENT=layers SUBMISSIONS=FOLDER
	@test -n $(call quoted,ASSIGNMENT) -a -n $(call quoted,SUBMISSIONS) || { \
		echo "Say which: make grade ASSIGNMENT=layers SUBMISSIONS=FOLDER" >&2; exit 1; }
	$(PY) book/_tools/grade.py $(call quoted,ASSIGNMENT) $(call quoted,SUBMISSIONS)

figures: $(READY) ## Write every figure of the book into _build/figures, for slides
	$(PY) book/_tools/figures.py

pagespeed: $(READY) ## Measure weight, times and accessibility of every built page, as on a slow phone
	$(PY) book/_tools/page_speed.py

lint: $(READY) ## Check style and formatting, notebooks included, and the package's types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# One process each: lint and the build go side by side.
test: $(READY) ## Lint and build; run the unit tests, every chapter, and the site's tests
	$(MAKE) -j 2 lint book
	$(PYTEST) tests --ignore=tests/site --ignore=tests/assignments
	$(OLD_PROCESSOR) $(MAKE) chapters
	$(PYTEST) tests/site

chapters: $(READY)
	DENSENET_TUTORIAL_DEVICE=cpu $(NBVAL) --nbval --nbval-sanitize-with=tests/nbval.cfg

test-portable: $(READY) ## Run every chapter as on three machines that have little in common
	env -u HOME LANG=C LC_ALL=C $(OLD_PROCESSOR) $(MAKE) chapters
	COLUMNS=40 MPLBACKEND=agg $(HASWELL) $(MAKE) chapters THREADS=2
ifneq ($(shell grep -m 1 -o avx512f /proc/cpuinfo),)
	TZ=Pacific/Chatham OPENBLAS_CORETYPE=SkylakeX $(MAKE) chapters THREADS=4
else
	@echo "This processor has no AVX-512: OPENBLAS_CORETYPE=SkylakeX is left out."
	TZ=Pacific/Chatham $(MAKE) chapters THREADS=4
endif

# The rest in one process: grading a folder itself uses every core.
test-assignments: $(GRADING) ## Make all assignments, grade wrong answers and a folder, run the students' notebooks
	$(PYTEST) tests/assignments/test_wrong_answers.py
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -rs --durations=5 tests/assignments \
		--ignore=tests/assignments/test_wrong_answers.py

# A GPU rounds differently, so what is printed is not compared; every cell's own assertions are.
test-gpu: $(READY) ## Run every chapter on the GPU; without one, this fails
	@$(PY) -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else \
		'make test-gpu: torch sees no GPU on this machine, so nothing was tested')"
	DENSENET_TUTORIAL_DEVICE=cuda $(NBVAL) --nbval-lax

test-oldest: ## Run the unit tests on the oldest torch that is supported (or another: TORCH=2.11 TORCHVISION=0.26)
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		"torch==$(TORCH).*" "torchvision==$(TORCHVISION).*" ipython pytest pytest-xdist -e .
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -rs -n 2 tests --ignore=tests/site --ignore=tests/book \
		--ignore=tests/assignments

test-modes: $(READY) ## Compare the memory-efficient modes with the plain model in COUNT random situations, from SEED on
	OMP_NUM_THREADS=1 $(PY) tests/random_situations.py --count $(or $(COUNT),1000) --seed $(or $(SEED),0)

fuzz: $(READY) ## Damage weights, images, addresses and runs at random for MINUTES, and count what is read wrongly
	OMP_NUM_THREADS=1 $(PY) tests/fuzz/run.py --minutes $(or $(MINUTES),10)

# Hours, so it is not part of `make test`. PART=training changes the training loop; EVERY=10 tries each tenth change.
test-mutants: $(READY) ## Change memory/, one thing at a time, and list what no test notices (PART=…, EVERY=…)
	test -x $(MUTANTS)/bin/cosmic-ray || { $(PYTHON) -m venv $(MUTANTS) && \
		$(MUTANTS)/bin/python -m pip install --quiet --disable-pip-version-check cosmic-ray==8.7.0; }
	$(MUTANTS)/bin/python tests/mutants.py $(or $(PART),memory) $(or $(EVERY),1)

repository: $(READY) ## Give the repository another address: make repository URL=https://github.com/OWNER/NAME
	@test -n "$(URL)" || { echo "Say which: make repository URL=https://github.com/OWNER/NAME" >&2; exit 1; }
	$(PY) book/_tools/repository.py "$(URL)"

clean: ## Remove what was built; .venv stays
	rm -rf _build .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find book densenet_tutorial tests -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
