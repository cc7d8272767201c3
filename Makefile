.DEFAULT_GOAL := help
SHELL := /bin/sh
.DELETE_ON_ERROR:

BIN := .venv/bin
HOME_DIR := .citystream
KAFKA := $(HOME_DIR)/kafka/libs
KAFKA_LOCK := deploy/kafka/checksums.lock
COPY_KAFKA = rm -rf $(KAFKA) && mvn -B -q -f deploy/kafka/pom.xml dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$(CURDIR)/$(KAFKA)"
KAFKA_SUMS = ( cd $(KAFKA) && sha256sum -- *.jar | LC_ALL=C sort -k 2 )
CLICKHOUSE := $(HOME_DIR)/clickhouse
ASYNCAPI := $(HOME_DIR)/asyncapi
CLICKHOUSE_ON_PATH := $(shell command -v clickhouse)

# Integration tests wait for much of their time.
TESTS_AT_ONCE := $(shell echo $$(( $$(nproc) + 1 )))

# SECONDS is a variable of some shells: take it only from the command line of make.
ifeq ($(origin SECONDS),command line)
DEMO_SECONDS := --seconds $(SECONDS)
endif

# $(call step,what it does,commands): run quietly, then say in one line what was done and how long it took.
define step
@from=$$(date +%s); printf '%s ... ' '$(1)'; \
if ( $(2) ) > $(HOME_DIR)/setup.log 2>&1; then echo "$$(( $$(date +%s) - from )) s"; \
else echo "failed"; tail -n 30 $(HOME_DIR)/setup.log >&2; exit 1; fi
endef

.PHONY: help setup demo test bench faults isolation truth containers lock clean

help:
	@echo 'make setup   install everything into .venv and .citystream'
	@echo 'make demo    setup, then the whole platform on simulated feeds (make demo SECONDS=60 stops by itself)'
	@echo 'make test    setup, then style, types, imports and all tests'
	@echo 'make bench   setup, then the measurements (ONLY=city: the city at its real rate; BEFORE=<another checkout>: both versions)'
	@echo 'make faults  setup, then kill and cut off every part of a running city and compare with a reference (LONG=1: longer)'
	@echo 'make isolation  setup, then hurt one feed after the other of a running city and see how fresh the others stay'
	@echo 'make truth   setup, then stage hundreds of incidents in a city and see which alerts are true (LONG=1: longer)'
	@echo 'make containers  setup, then docker-compose.yml for real, where a Docker engine is there'
	@echo 'make lock    pin all dependencies again, in requirements.lock and deploy/kafka/checksums.lock'
	@echo 'make clean   remove what setup installed and the local data'

setup: .venv/kernels.stamp $(HOME_DIR)/kafka/archive.stamp $(ASYNCAPI)/stamp $(if $(CLICKHOUSE_ON_PATH),,$(CLICKHOUSE)/stamp)
	@:

$(HOME_DIR)/prerequisites.stamp: deploy/check_prerequisites.py
	@mkdir -p $(HOME_DIR)
	@command -v python3 > /dev/null || { echo 'Missing: Python 3.11: apt-get install python3.11 python3.11-venv' >&2; exit 1; }
	@python3 deploy/check_prerequisites.py
	@touch $@

.venv/python.stamp: requirements.lock | $(HOME_DIR)/prerequisites.stamp
	$(call step,Python packages into .venv,python3.11 -m venv .venv && $(BIN)/pip install --require-hashes -r requirements.lock)
	@touch $@

.venv/project.stamp: pyproject.toml .venv/python.stamp
	$(call step,citystream itself into .venv,$(BIN)/pip install --no-deps --no-build-isolation -e .)
	@touch $@

# Numba keeps what it compiled beside the modules, until one of them is newer.
.venv/kernels.stamp: deploy/docker/compile.py $(shell grep -rl --include='*.py' '^from numba import' processors sinks streams) .venv/project.stamp
	$(call step,compiled decoder and windows,$(BIN)/python -P deploy/docker/compile.py)
	@touch $@

$(HOME_DIR)/kafka/stamp: deploy/kafka/pom.xml $(KAFKA_LOCK) | $(HOME_DIR)/prerequisites.stamp
	$(call step,Kafka by Maven into $(KAFKA),$(COPY_KAFKA) && $(KAFKA_SUMS) | diff $(KAFKA_LOCK) - || { echo "Kafka came with other parts than $(KAFKA_LOCK) says"; exit 1; })
	@touch $@

$(HOME_DIR)/kafka/archive.stamp: deploy/kafka/archive.py $(HOME_DIR)/kafka/stamp .venv/project.stamp
	$(call step,an archive of the classes of Kafka,$(BIN)/python -P deploy/kafka/archive.py)
	@touch $@

$(CLICKHOUSE)/stamp: deploy/clickhouse/package.json deploy/clickhouse/package-lock.json | $(HOME_DIR)/prerequisites.stamp
	$(call step,ClickHouse by npm into $(CLICKHOUSE),mkdir -p $(CLICKHOUSE) && cp deploy/clickhouse/package.json deploy/clickhouse/package-lock.json $(CLICKHOUSE)/ && cd $(CLICKHOUSE) && npm ci --no-audit --no-fund)
	@touch $@

$(ASYNCAPI)/stamp: $(wildcard deploy/asyncapi/*) | $(HOME_DIR)/prerequisites.stamp
	$(call step,AsyncAPI validator by npm into $(ASYNCAPI),mkdir -p $(ASYNCAPI) && cp deploy/asyncapi/* $(ASYNCAPI)/ && cd $(ASYNCAPI) && npm ci --ignore-scripts --no-audit --no-fund)
	@touch $@

demo: setup
	@$(BIN)/citystream demo $(DEMO_SECONDS)

test: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses=$(TESTS_AT_ONCE) --dist=loadgroup --no-loadscope-reorder --durations=12 --durations-min=20

bench: setup
	$(BIN)/python -m bench '$(ONLY)' '$(BEFORE)'

faults: setup
	@$(BIN)/python -m tests.campaign

isolation: setup
	@$(BIN)/python -m tests.isolation

truth: setup
	@$(BIN)/python -m tests.truth

containers: setup
	@$(BIN)/python -m deploy.containers

# Two of Python's: with the developers' tools, and the same versions without them for the image.
PIP_COMPILE := $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options

lock: .venv/project.stamp
	$(PIP_COMPILE) --extra dev --output-file requirements.lock pyproject.toml
	$(PIP_COMPILE) --constraint requirements.lock --output-file deploy/docker/requirements.lock pyproject.toml
	@$(COPY_KAFKA) && $(KAFKA_SUMS) > $(KAFKA_LOCK)

clean:
	@if [ -x $(BIN)/citystream ]; then $(BIN)/citystream down; fi
	rm -rf .venv $(HOME_DIR) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
