PYTHON ?= python3
RUNS   := tests/test_conduct.py tests/test_failover.py         # these start workers in tmux, and mostly wait
CALLS  := tests/test_command_line.py tests/test_tmux.py tests/test_skill.py tests/test_readme.py
TALKS  := tests/test_talk.py
LONG   := tests/test_outliving.py tests/test_faults.py
SKILLS := $(addprefix tests/live/test_,skill.py installers.py outliving.py)
VENV   := .venv
PYTEST := $(VENV)/bin/python -m pytest -q
# The oldest and the newest Python, where they are found: on the PATH, or in pyenv's folder.
OTHERS := $(foreach version,3.9 3.13,$(firstword $(wildcard $(HOME)/.pyenv/versions/$(version).*/bin/python3) \
                                                 $(shell command -v python$(version) 2>/dev/null)))

.PHONY: help demo test test-rooms test-calls test-runs test-long test-others test-talks test-a-talk live live-some live-others live-skills bench capture install tmux

help:     ## what there is (the default)
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: tmux ## the whole cycle with a built-in worker: no account, no network
	$(PYTHON) selftalk.py demo

test: tmux $(VENV)/ready ## the tests, without any agent installed
	@$(MAKE) --no-print-directory --jobs 7 --output-sync test-talks test-a-talk test-runs test-long test-calls test-rooms test-others

test-runs:
	$(PYTEST) $(RUNS)

test-long:
	$(PYTEST) $(LONG)

test-calls:
	$(PYTEST) $(CALLS)

test-talks:
	$(PYTEST) $(TALKS) -k 'not test_a_'

test-a-talk:
	$(PYTEST) $(TALKS) -k test_a_

test-rooms:
	$(PYTEST) tests --ignore tests/live $(addprefix --ignore ,$(RUNS) $(CALLS) $(TALKS) $(LONG))

test-others:
	@for python in $(OTHERS); do tests/with_python $$python || exit 1; done

live: tmux $(VENV)/ready ## the real agent CLIs against a model server on 127.0.0.1; AGENTS=latest moves them on
	SELFTALK_AGENTS='$(AGENTS)' $(VENV)/bin/python tests/live/install_agents.py
	@$(MAKE) --no-print-directory --jobs 3 --output-sync live-some live-others live-skills

live-some:
	$(PYTEST) tests/live -k 'opencode or gemini and not test_headless' $(addprefix --ignore ,$(SKILLS))

live-others:
	$(PYTEST) tests/live -k 'not (opencode or gemini and not test_headless)' $(addprefix --ignore ,$(SKILLS))

live-skills:
	$(PYTEST) $(SKILLS)

bench: tmux ## what selftalk costs, as ratios within one run
	$(PYTHON) tests/bench.py

capture: tmux ## record a pane into tests/screens: make capture AGENT=claude VERSION=2.1.329 STATE=ready NAME=start SOCKET=… PANE=%0
	$(PYTHON) tests/capture.py '$(AGENT)' '$(VERSION)' '$(STATE)' '$(NAME)' '$(SOCKET)' '$(PANE)'

install:  ## copy selftalk and its skill to the agents that are here
	$(PYTHON) selftalk.py install-skill

tmux:
	@command -v tmux >/dev/null || sh tests/install_package tmux

$(VENV)/ready:
	$(PYTHON) -m venv $(VENV) || { sh tests/install_package python3-venv && $(PYTHON) -m venv $(VENV); }
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check pytest
	@touch $@
