# make demo: the whole recipe on synthetic hands. make test: the suite. Both make .venv from nothing but Python 3.11.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python

# glibc hands large blocks back to the system at every step and takes them again; keeping them is faster on a CPU.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 8589934592
export MALLOC_TOP_PAD_ := 268435456

# A quarter of YOLOv3's width and images of 128 pixels, so that two cores need minutes only.
DEMO := --model_def config/yolov3-small-hand.cfg --data_config config/demo.data --n_cpu 2
DEMO_TRAIN := $(DEMO) --img_size 128 --batch_size 8 --mosaic 0 --checkpoint_interval 30 --evaluation_interval 3 --overwrite

.PHONY: demo test test-zoo test-gpu test-kill fuzz bench lint docs-check clean

demo: $(VENV)/.requirements data/demo/train.txt
	@echo "== 1. baseline"
	$(PY) train.py $(DEMO_TRAIN) --name demo_baseline --epochs 12
	@echo "== 2. small: the least important channels are cut, and what is left is trained"
	$(PY) train.py $(DEMO_TRAIN) --name demo_small --epochs 2 -sr --target_percent 0.6 \
		-pre checkpoints/demo_baseline_ckpt.pth
	@echo "== 3. proof: the files, and before and after in a table"
	$(PY) test_prune.py --data_config config/demo.data --weights_path checkpoints/demo_small_ckpt.pth \
		--out_cfg config/prune_demo.cfg --out_weights checkpoints/prune_demo_ckpt.pth
	@echo "== 4. detect"
	$(PY) detect.py --image_folder "data/demo/images/test_0000*.jpg" \
		--weights_path checkpoints/prune_demo_ckpt.pth --conf_thres 0.25 --output output/demo
	@echo "plots: runs/demo_small (training), runs/prune_demo (channels), output/demo (detections)"
	@echo "the report, in a browser: $(PY) -m webbrowser file://$(CURDIR)/runs/prune_demo/report.html"

data/demo/train.txt: | $(VENV)/.requirements
	$(PY) data/synthetic_hands.py --output data/demo --train 700 --valid 60 --test 80 --size 192 --overwrite
	$(PY) data/converter.py --source data/demo/hand_dataset --output data/demo

test: $(VENV)/.requirements-dev
	OMP_WAIT_POLICY=passive $(PY) -m pytest -n 2

# Darknet's networks at full width: minutes, and 4 GB of memory.
test-zoo: $(VENV)/.requirements-dev
	$(PY) -m pytest -m zoo

# On a machine with an NVIDIA GPU, meant for less than 8 minutes on an H100: whether all is right there, and how fast it is.
test-gpu: $(VENV)/.requirements-dev
	$(PY) -m pytest -m gpu -s tests/gpu

# About fifteen minutes on two idle cores; ROWS="--only nms map" for some rows, --rounds for more or fewer measurements.
bench: $(VENV)/.requirements-dev
	$(PY) benchmark.py $(ROWS)

# 20,000 damaged files for each reader; training and pruning, killed 60 times and more: minutes each.
fuzz: $(VENV)/.requirements-dev
	OMP_NUM_THREADS=1 $(PY) tests/fuzz.py

test-kill: $(VENV)/.requirements-dev
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(PY) tests/kill.py

lint: $(VENV)/.requirements-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m tests.docs_check
	$(PY) -m mypy utils models.py train.py test.py test_prune.py detect.py export.py report.py benchmark.py

# The commands of the README and docs/ parse, and the files that they name exist.
docs-check: $(VENV)/.requirements-dev
	$(PY) -m tests.docs_check

# What the demo and the tests leave; no trained network but the demo's.
clean:
	rm -rf checkpoints/demo_* checkpoints/prune_demo* config/prune_demo.cfg
	rm -rf runs/demo_* runs/prune_demo output/demo data/demo .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.requirements: requirements.txt | $(VENV)/bin/python
	$(PY) -m pip install --disable-pip-version-check --quiet -r requirements.txt
	touch $@

$(VENV)/.requirements-dev: requirements-dev.txt requirements-export.txt $(VENV)/.requirements
	$(PY) -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	touch $@
