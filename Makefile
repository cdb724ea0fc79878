# `make demo` and `make test` work on a fresh machine with Python 3.11, 3.12 or 3.13; every target does its own set-up.
# PYTHON=... picks the interpreter, VENV=... the place of the environment, TORCH=... the torch release,
# NEWEST_PIP=1 takes the newest pip instead of the one that comes with Python.

VENV ?= .venv
TORCH ?= 2.11.0
# torchaudio has torch's version up to 2.11, its last line, which later torches take the newest of.
TORCHAUDIO ?= $(if $(filter 2.6.% 2.7.% 2.8.% 2.9.% 2.10.% 2.11.%,$(TORCH)),$(TORCH),2.11.*)
# A name that is only a shim, as pyenv has them for versions that are not switched on, does not run and is passed over.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && exit; done; echo python3)
BIN := $(VENV)/bin
BASE := $(VENV)/.ready-torch-$(TORCH)
READY = $(VENV)/.ready-$(1)-torch-$(TORCH)

# s3prl's environment, beside this project's; S3PRL=CLONE, where there is one, has what its package lacks.
SUPERB_VENV ?= .venv-superb
SUPERB := --corpora demo/superb/superb.yaml --python $(SUPERB_VENV)/bin/python $(if $(S3PRL),--s3prl $(S3PRL))
# PR and SF import modules that only the clone has.
SUPERB_TASKS ?= $(if $(S3PRL),pr asr ks qbe sid asv sd ic sf er se,asr ks qbe sid asv sd ic er se)

.PHONY: setup setup-demo demo demo-long demo-teacher superb-env superb-demo ablation test test-all test-gpu \
	lint bench bench-device bench-gpu bench-s3prl clean
.DELETE_ON_ERROR:

# All that the tests need; `make demo` makes do with less.
setup: $(call READY,test)
setup-demo: $(call READY,demo)

$(BASE):
	@"$(PYTHON)" -c '' || { echo "fairseq-star: $(PYTHON) does not run; name a Python 3.11, 3.12 or 3.13 that does:" \
		"make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" tools/check_machine.py "$(VENV)"
	@echo "Setting up $(VENV) with $$("$(PYTHON)" --version): torch takes two minutes or three, fairseq is compiled in four."
	test -x $(BIN)/python || "$(PYTHON)" -m venv "$(VENV)"
	$(if $(NEWEST_PIP),$(BIN)/python -m pip install --quiet --upgrade pip)
	$(BIN)/python -m pip install --quiet torch==$(TORCH) 'torchaudio==$(TORCHAUDIO)' numpy cython ninja setuptools wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation fairseq-fixed
	@touch $@

$(call READY,%): $(BASE) pyproject.toml
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

demo: setup-demo
	$(BIN)/python manifests/demo/corpus.py demo/corpus
	$(BIN)/fairseq-hydra-train --config-dir configs --config-name demo_sliced common.user_dir=fairseq_star \
		task.data=demo/corpus task.teacher=assets/demo_teacher/demo_hubert.pt
	$(BIN)/fairseq-star evaluate demo/run/checkpoint_best.pt
	$(BIN)/fairseq-star probe demo/run/checkpoint_best.pt --seeds 0 --max-utterances 150 --out demo/run/probe.json
	$(BIN)/fairseq-star report demo/run
	$(BIN)/fairseq-star export demo/run/checkpoint_best.pt --to s3prl --out demo/student.s3prl.pt --force

# The student trained until it keeps most of what its teacher knows: half an hour on two cores.
demo-long: setup-demo
	$(BIN)/python manifests/demo/corpus.py demo/corpus
	$(BIN)/fairseq-hydra-train --config-dir configs --config-name demo_long common.user_dir=fairseq_star \
		task.data=demo/corpus task.teacher=assets/demo_teacher/demo_hubert.pt
	$(BIN)/fairseq-star probe demo/long/checkpoint_best.pt --plot demo/long/layer_weights.png

# With the newest pip, which these versions were chosen with.
superb-env: $(SUPERB_VENV)/.ready
$(SUPERB_VENV)/.ready: tools/superb-environment.txt
	@"$(PYTHON)" tools/check_machine.py "$(SUPERB_VENV)"
	test -x $(SUPERB_VENV)/bin/python || "$(PYTHON)" -m venv "$(SUPERB_VENV)"
	$(SUPERB_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(SUPERB_VENV)/bin/python -m pip install --quiet --requirement $<
	@touch $@

# SUPERB's tasks through s3prl on synthetic corpora: the student of demo-long, its first weights, FBANK.
superb-demo: setup-demo superb-env
	test -e demo/long/checkpoint_best.pt || $(MAKE) demo-long
	$(BIN)/python manifests/demo/superb.py demo/superb
	$(BIN)/python -m benchmarks.superb_demo demo/long/checkpoint_best.pt $(SUPERB) --tasks $(SUPERB_TASKS) \
		--store-features 2

ablation: setup-demo
	$(BIN)/python manifests/demo/corpus.py demo/corpus
	$(BIN)/python -m benchmarks.ablation
	$(BIN)/python -m benchmarks.ablation --suite objectives --out demo/objectives --noisy --equal-time --snrs 20 10 0
	$(BIN)/python -m benchmarks.ablation_curve --out demo/objectives
	$(if $(STAR_REAL_SPEECH),$(BIN)/python -m benchmarks.real_speech $(STAR_REAL_SPEECH))
	$(if $(STAR_REAL_SPEECH),$(BIN)/python -m benchmarks.ablation --suite objectives --data demo/real --batch-size 2 --noisy --out demo/real-objectives)

demo-teacher: setup-demo
	$(BIN)/python manifests/demo/teacher.py demo/teacher

# Two processes of one thread each; files are kept whole, for what their tests share.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: setup
	$(PYTEST)

test-all: setup
	$(PYTEST) -m "not gpu"

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/python tools/check_house.py
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.loss
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.deploy

bench-device: setup
	$(BIN)/python -m benchmarks.device

bench-s3prl: setup demo
	$(BIN)/python -m benchmarks.s3prl_keywords demo/run/checkpoint_best.pt

# Each step's line one precision, compiled layers beside plain ones: naive, fast, cached, peak memory, utilization, kernels.
bench-gpu: setup
	$(BIN)/python -m benchmarks.loss --device cuda --dtype bfloat16
	$(BIN)/python -m benchmarks.step --device cuda --dtype float32 --batch 16 --rounds 10 --compile
	$(BIN)/python -m benchmarks.step --device cuda --dtype bfloat16 --batch 16 --rounds 10 --compile
	$(BIN)/python -m benchmarks.step --device cuda --dtype float16 --batch 16 --rounds 10 --compile

clean:
	rm -rf demo runs .pytest_cache .ruff_cache .hypothesis
