# Every target does its own set-up: a virtual environment in .venv, made again when settings.ini, setup.py or constraints.txt change.
#   make course          raw text -> chat model, chapter by chapter (FRESH=1 starts over, ARGS="--only 03" runs one chapter)
#   make chat            talk to the model in the terminal
#   make serve           talk to it over HTTP: http://127.0.0.1:8812 (ARGS="--port 9000")
#   make lab             JupyterLab at the first chapter
#   make test            everything CI checks
#   make docs            the site, into _site/ (needs Quarto 1.9)
#   make bench           benchmarks/*.py that want neither real text nor the network, results in benchmarks/results/
#   make export          notebooks -> scclm/*.py, after you edited a notebook
#   make outputs         outputs of the last course run -> nbs/, cleaned; then make front
#   make form            one form for all notebooks: quotation marks, abstracts, answers, the cell for Colab
#   make front           numbers and picture of the READMEs, benchmarks/README.md, DEPENDENCIES.md, addresses of settings.ini
# The dials SCCLM_SCALE, SCCLM_RAW and SCCLM_RUNS are passed on:  SCCLM_RAW=~/corpus SCCLM_RUNS=runs_mine make course

.DEFAULT_GOAL := help
.PHONY: help setup course test lab docs bench chat serve export outputs front form
.DELETE_ON_ERROR:

BIN   := .venv/bin
STAMP := .venv/set_up_seconds
KERNEL := .venv/kernel_that_chooses
export PYTHONUTF8 := 1

help:
	@sed -n 's/^#   //p' Makefile

# The first Python that runs and is new enough; PYTHON=... names another. 3.11 is what the course is tested with.
find_python = py=; for p in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { py=$$p; break; }; done

$(STAMP): settings.ini setup.py constraints.txt
	@t0=$$(date +%s); $(find_python); \
	if [ -z "$${py:-}" ]; then echo "SCCLM needs Python 3.11 or newer, and found none on PATH. Install it, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; fi; \
	echo "[set-up] $$("$$py" --version) -> .venv (a few minutes, once)"; \
	"$$py" -m venv .venv || { echo "$$py cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }; \
	torch=$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt); \
	echo "[set-up] $$torch"; $(BIN)/python -m pip install -qq "$$torch" || exit 1; \
	echo "[set-up] the rest, as in constraints.txt"; $(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]' || exit 1; \
	test -f .venv/share/jupyter/kernels/python3/kernel.json || $(BIN)/python -m ipykernel install --sys-prefix || exit 1; \
	echo $$(( $$(date +%s) - t0 )) > $@; echo "[set-up] done in $$(cat $@) s"

# The environment's kernel looks how busy the machine is before it starts (nbs/appendix/busy.ipynb).
$(KERNEL): $(STAMP) scclm/busy.py
	@$(BIN)/python -c "from scclm.busy import point_kernel; point_kernel()" && touch $@

setup: $(STAMP) $(KERNEL)

course: $(STAMP) $(KERNEL)
	@SCCLM_SETUP_SECONDS=$$(cat $(STAMP)) $(BIN)/python -m scclm.course --reference $(if $(filter 1 true yes,$(FRESH)),--fresh) $(ARGS)

test: $(STAMP) $(KERNEL)
	@$(BIN)/python tests/ci.py $(ARGS)

lab: $(STAMP) $(KERNEL)
	@JUPYTER_PREFER_ENV_PATH=1 $(BIN)/jupyter lab nbs/00_data_cleaning.ipynb $(ARGS)

# Both talk to the model just trained.
trained = $(BIN)/python -c "import sys; from scclm.runs import chat_models, run_path; any(p.exists() for p in chat_models()) or sys.exit(f'no trained model in {run_path()}: run make course first')"

chat: $(STAMP)
	@$(trained)
	@$(BIN)/scclm chat $(ARGS)

serve: $(STAMP)
	@$(trained)
	@exec $(BIN)/scclm serve $(ARGS)

# With a trained model the site has the chat in the page; without one it says how to get it.
docs: $(STAMP)
	@command -v quarto >/dev/null || { echo "make docs needs Quarto 1.9, which is not on PATH: https://quarto.org/docs/get-started/" >&2; exit 1; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" QUARTO_PYTHON="$(CURDIR)/$(BIN)/python" quarto render

bench: $(STAMP)
	@grep -l __main__ benchmarks/*.py >/dev/null 2>&1 || { echo "benchmarks/ holds no script" >&2; exit 1; }
	@for b in $$(grep -l __main__ benchmarks/*.py); do \
	case $$b in */gpu_mini*) continue;; */setup_size*) echo "== $$b: wants the network, see its first lines"; continue;; */data.py|*/duplicates*|*/facts*|*/leaks*|*/real*|*/resume*|*/scale*|*/shapes*|*/slow_rules*|*/stream*|*/tokenizer_trainers*|*/train*|*/words*) echo "== $$b: wants real text, see its first lines"; continue;; */gpu*) command -v nvidia-smi >/dev/null || { echo "== $$b: no GPU here"; continue; };; esac; \
	echo "== $$b"; $(BIN)/python "$$b" $(ARGS) || exit 1; done

export: $(STAMP)
	@$(BIN)/nbdev_export

outputs: $(STAMP)
	@$(BIN)/python .ci/store_outputs.py && $(BIN)/nbdev_clean

front: $(STAMP)
	@$(BIN)/python .ci/front.py && $(BIN)/nbdev_export

form: $(STAMP)
	@$(BIN)/python .ci/one_form.py && $(BIN)/nbdev_export
