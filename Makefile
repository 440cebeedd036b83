# Every recipe works from a fresh clone. `make gameday` and `make test` need no root.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INPUTS := pyproject.toml constraints.txt pipeline/__init__.py
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup
# What `make test` leaves to `make test-full`.
SLOW := s3server or postgres or guest or chroot or browser or chaos

.PHONY: ami ami-input gameday test check checkov lambda test-full deps fmt bench faults hostile lock lock-ami dist clean help

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "impound needs Python 3.11 to 3.13; set PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) \
	  || { echo "cannot make a virtual environment (Debian: apt install python3-venv)" >&2; exit 1; }
	touch $@

$(VENV)/.gameday: $(VENV)/.python $(INPUTS)
	$(PIP) install --editable '.[gameday]' --constraint constraints.txt
	touch $@

$(VENV)/.dev: $(VENV)/.python $(INPUTS)
	$(PIP) install --editable '.[dev,gameday]' --constraint constraints.txt
	touch $@ $(VENV)/.gameday

# The judge of policies: a process of tests, never linked. Where npm cannot bring it, its tests are
# skipped; with CI=true they fail.
ORACLE := tests/infra/oracle
$(VENV)/.oracle: $(VENV)/.python $(ORACLE)/package-lock.json
	mkdir -p $(VENV)/oracle
	cp $(ORACLE)/package.json $(ORACLE)/package-lock.json $(VENV)/oracle/
	if ! command -v npm >/dev/null; then
	  exit 0
	fi
	if npm ci --prefix $(VENV)/oracle --ignore-scripts --no-audit --no-fund --loglevel=error --fetch-retries=1; then
	  touch $@
	else
	  echo "npm ci failed: the tests that judge policies are left out (CI=true: they fail)" >&2
	fi

# checkov pins its own parsers, so it lives apart.
$(VENV)-checkov/.done: tests/infra/checkov.txt
	rm -rf $(VENV)-checkov
	$(PYTHON) -m venv $(VENV)-checkov
	$(VENV)-checkov/bin/python -m pip --disable-pip-version-check --quiet install -r $<
	touch $@

gameday: $(VENV)/.gameday  ## Rehearse the whole job on evidence made on the spot (no root).
	$(BIN)/impound gameday

test: $(VENV)/.dev $(VENV)/.oracle  ## The fast tests.
	$(PYTEST) -m 'not ($(SLOW))'

test-full: $(VENV)/.dev $(VENV)/.oracle checkov  ## The slow tests: kills, faults, real components (root, make deps).
	$(PYTEST) -m '$(SLOW)'

check: $(VENV)/.dev  ## Lint, format, types, dependency direction, templates.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/cfn-lint -- cfn/*.yaml
	if command -v packer > /dev/null; then
	  packer validate ami/packer.pkr.hcl
	  packer fmt -check ami/packer.pkr.hcl ; packer fmt -check ami/plugins.pkr.hcl
	elif [ "$${CI:-}" = true ]; then
	  echo "packer is not installed (make deps)" >&2
	  exit 1
	else
	  echo "packer is not installed: ami/ is not checked (make deps)"
	fi

checkov: $(VENV)-checkov/.done  ## The templates, as checkov sees them; what does not hold here stands in tests/infra.
	$(VENV)-checkov/bin/checkov --config-file tests/infra/checkov.yaml --directory cfn

lambda: $(VENV)/.dev  ## The package of the functions: dist/impound-lambda.zip.
	$(BIN)/python -I cfn/package.py dist/impound-lambda.zip

fmt: $(VENV)/.dev  ## Format and fix what can be fixed.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

faults: $(VENV)/.dev  ## Long random fault runs: kills, failing calls, lost answers.
	export IMPOUND_S3_RUNS=$${IMPOUND_S3_RUNS:-1000} IMPOUND_ACQUIRE_KILLS=$${IMPOUND_ACQUIRE_KILLS:-20}
	export IMPOUND_ACQUIRE_FAULTS=$${IMPOUND_ACQUIRE_FAULTS:-all}
	$(PYTEST) -m chaos tests/evidence_store tests/acquisition tests/pipeline tests/e2e

hostile: $(VENV)/.dev  ## Corrupt and hostile evidence.
	$(PYTEST) -k 'hostile or corrupt or truncated or malformed or arbitrary' -m '$(SLOW) or not ($(SLOW))'

bench: $(VENV)/.dev  ## Ours and the peer tool alternating in one run (make deps first).
	$(BIN)/python benchmarks/run.py

deps:  ## Debian packages for the slow tests and benchmarks (root).
	apt-get update -q
	command -v npm >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
	  --no-install-recommends nodejs npm
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
	  python3-venv e2fsprogs xfsprogs ntfs-3g dosfstools mtools \
	  exfatprogs exfat-fuse fdisk strace openssl dash zstd \
	  chromium poppler-utils sleuthkit ewf-tools dc3dd shellcheck \
	  qemu-utils libnbd-bin postgresql debootstrap packer nftables \
	  openssh-server openssh-client lz4 qemu-system-x86 gcc libc6-dev clang lld

ami-input: $(VENV)/.dev  ## What the forensics image is provisioned with, by SHA-256 (AMI_INPUT=options of ami/prepare.py).
	$(BIN)/python ami/prepare.py $(AMI_INPUT)

ami: ami-input  ## Build the forensics image (Packer from 1.9, AWS credentials, AMI_OPTIONS=-var …).
	rm -rf build/ami
	mkdir -p build/ami
	sed -e '/imdsv2.hcl is put here/{r ami/imdsv2.hcl' -e 'd}' ami/packer.pkr.hcl > build/ami/packer.pkr.hcl
	cp ami/plugins.pkr.hcl build/ami/
	packer init build/ami
	packer build $(AMI_OPTIONS) build/ami

lock-ami: $(VENV)/.dev  ## Renew ami/requirements.txt; as root ami/debian.lock.
	$(BIN)/python ami/lock.py

lock: $(VENV)/.python  ## Renew constraints.txt; then make lock-ami.
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --editable '.[dev,gameday]'
	$(VENV)-lock/bin/python -m pip list --format freeze --exclude impound --exclude pip \
	  --exclude setuptools | LC_ALL=C sort -f > constraints.txt
	rm -rf $(VENV)-lock

dist: $(VENV)/.dev  ## Wheel and source archive in dist/.
	$(PIP) install build
	$(BIN)/python -m build --quiet

clean:  ## Remove what the other targets made, evidence excepted.
	rm -rf $(VENV) $(VENV)-checkov dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
