# SPDX-License-Identifier: Apache-2.0
# The one front door: `make help` lists what it does. Every target installs, fetches and builds what
# it needs and does not find, and says so first. What takes long to make is kept outside the tree;
# see tests/provision.

.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

PROVISION := python3 tests/provision
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest

# Images for containers often set it, and then each of the hundreds of starts of the daemon in a run
# of the tests compiles all of its modules anew, which takes longer than all else in a start.
unexport PYTHONDONTWRITEBYTECODE

# What each kind of run needs; tests find it by HCALLD_QEMU, HCALLD_KERNEL_DEBIAN,
# HCALLD_KERNEL_DEBIAN_SID, HCALLD_KERNEL_DEBIAN_64K, HCALLD_KERNEL_OWN, HCALLD_KERNEL_OWN_64K,
# HCALLD_INITRAMFS, HCALLD_INITRAMFS_TOOLS, HCALLD_INITRAMFS_TPM, HCALLD_INITRAMFS_SELFTESTS,
# HCALLD_STUB_DIR, HCALLD_KERNEL_X86, HCALLD_SEV_LIBRARY and HCALLD_SEV_FIRMWARE.
GUESTS := kernel-debian kernel-debian-sid kernel-debian-64k kernel-own kernel-own-64k \
	initramfs initramfs-tools initramfs-tpm initramfs-selftests
KEYSTORE_DEMO := qemu kernel-debian initramfs stub
SECURE_DEMO := qemu kernel-own initramfs stub
SEV_DEMO := sev-library sev-firmware
SEV := kernel-x86 sev-library sev-firmware
ALL := qemu $(GUESTS) kernel-x86 stub sev-library sev-firmware

# More words for pytest, such as PYTEST_ARGS='-k password -x'.
PYTEST_ARGS ?=

empty :=
comma := ,
with = $(PROVISION) run --with $(subst $(empty) $(empty),$(comma),$(strip $(1))) --

# A run that must not skip anything for want of a tool, nor leave a tier out.
require = HCALLD_REQUIRE=$(1) $(PYTEST) -p tests.provision.tiers --tiers=$(2) $(parallel)

# Guests and tests mostly wait for one processor: one process for each of them. JOBS=0 for none,
# which a debugger needs.
JOBS ?= auto
parallel = -n $(JOBS) --dist worksteal

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  make %-14s %s\n", $$1, $$2 }'

.PHONY: demo
demo: prepare-demo venv stub sev ## Set everything up, then show Linux with its keystore, as a secure VM, and a SEV guest
	@$(call with,$(KEYSTORE_DEMO)) $(PYTHON) -m tests.demo keystore
	@$(call with,$(SECURE_DEMO)) $(PYTHON) -m tests.demo secure
	@$(call with,$(SEV_DEMO)) $(PYTHON) -m tests.demo sev

.PHONY: test
test: prepare-test venv check check-series qemu guest stub sev qtest ## Set everything up, then run every test; what CI runs
	@$(call with,$(ALL)) env $(call require,qemu$(comma)kernel$(comma)kvm,unit$(comma)property$(comma)vectors$(comma)integration$(comma)qemu$(comma)kernel$(comma)kvm) -m 'not soak and not bench' $(PYTEST_ARGS)

.PHONY: prepare-demo
prepare-demo:
	@$(PROVISION) system venv demo $(sort $(KEYSTORE_DEMO) $(SECURE_DEMO))

.PHONY: prepare-test
prepare-test:
	@$(PROVISION) system venv tests qemu-src $(ALL)

.PHONY: venv
venv: ## Make or update the virtual environment .venv
	@$(PROVISION) venv >/dev/null

.PHONY: qemu
qemu: ## Build QEMU with the patch series (QEMU_SRC=… names a tree or tarball of yours)
	@$(PROVISION) qemu

.PHONY: guest
guest: ## Fetch Debian's kernels, build our own, make the initramfs
	@for name in $(GUESTS); do $(PROVISION) $$name || exit; done

.PHONY: stub
stub: ## Build the bare-metal guest stub
	@$(PROVISION) system stub
	@$(MAKE) -C guest_stub

# An x86-64 host's alone; elsewhere what needs it says that it is left out, and the rest goes on.
.PHONY: sev
sev: ## Build the library that takes QEMU's SEV commands to the daemon, and a firmware for its guests
	@if [ "$$(uname -m)" = x86_64 ]; then \
		$(PROVISION) system sev && for part in ioctl_shim guest_stub/x86; do $(MAKE) -C $$part || exit; done; \
	else \
		echo "make sev: nothing is built on $$(uname -m): QEMU gives SEV's commands to KVM, which runs x86 guests" \
			"on x86-64 alone. The daemon and \`hcalld sev vm launch\`, which needs no KVM, are as elsewhere."; \
	fi

.PHONY: generate
generate: venv ## Write again what is generated from the table of calls
	@$(PYTHON) -m hcallproto.codegen

.PHONY: check
check: venv ## Lint, types, import contracts, generated files up to date
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@$(if $(MYPY_CACHE_DIR),flock "$(MYPY_CACHE_DIR).lock" ).venv/bin/mypy
	@.venv/bin/lint-imports
	@$(PYTHON) -m hcallproto.codegen --check

.PHONY: check-series
check-series: ## Does the patch series apply, and pass QEMU's checkpatch.pl?
	@$(PROVISION) check-series

.PHONY: format
format: venv ## Format the Python sources, mend what the linter can
	@.venv/bin/ruff check --fix-only
	@.venv/bin/ruff format

.PHONY: unit
unit: venv ## Run the tests that need no QEMU: unit, property, vectors
	@$(PROVISION) system tests
	@$(call require,,unit$(comma)property$(comma)vectors) -m 'not qemu and not kernel and not kvm and not soak and not bench' $(PYTEST_ARGS)

.PHONY: itest
itest: venv stub ## Run the tests with QEMU and the guest stub
	@$(call with,qemu stub) env $(call require,qemu,integration$(comma)qemu) -m 'qemu and not kernel and not soak and not bench' $(PYTEST_ARGS)

.PHONY: ktest
ktest: venv stub ## Run the tests with Linux kernels
	@$(PROVISION) system tests
	@$(call with,$(ALL)) env $(call require,qemu$(comma)kernel,kernel) -m 'kernel and not soak and not bench' $(PYTEST_ARGS)

.PHONY: kvmtest
kvmtest: venv sev ## Run the tests with SEV guests in Debian's QEMU under KVM
	@$(PROVISION) system tests
	@$(call with,$(SEV)) env $(call require,kvm,kvm) -m 'kvm and not soak and not bench' $(PYTEST_ARGS)

# CAPTURES names some of them, such as CAPTURES='pkwm secvar'.
CAPTURES ?=

.PHONY: captures
captures: venv stub ## Make the captures in tests/vectors/captures anew, with real guests
	@$(call with,$(ALL)) $(PYTHON) -m tests.vectors.captures.make $(CAPTURES)

# KERNEL names a vmlinux, SRC the tree that selftests are built from; SELFTEST_ARGS has more words
# for `hcalld guest run`, such as SELFTEST_ARGS='--suite tpm'.
SELFTEST := qemu kernel-own initramfs-selftests stub
KERNEL ?=
SRC ?=
SELFTEST_ARGS ?=
named = $(if $(KERNEL),HCALLD_KERNEL_OWN=$(abspath $(KERNEL))) $(if $(SRC),HCALLD_KERNEL_SRC=$(abspath $(SRC)))

.PHONY: selftest
selftest: venv stub ## Run the kernel's selftests and ours in guests (KERNEL=vmlinux SRC=linux-tree)
	@[ -z "$(KERNEL)" ] || [ -f "$(KERNEL)" ] || { echo "make selftest: KERNEL=$(KERNEL) is no file; \
	expected the vmlinux of a built kernel tree" >&2; exit 1; }
	@[ -z "$(SRC)" ] || [ -d "$(SRC)/tools/testing/selftests" ] || { echo "make selftest: SRC=$(SRC) \
	has no tools/testing/selftests; expected a Linux source tree" >&2; exit 1; }
	@$(named) $(PROVISION) system selftest $(SELFTEST)
	@$(named) $(call with,$(SELFTEST)) .venv/bin/hcalld guest run --tests guest_stub/linux/selftests \
		--file /bin/esmb-get-file=guest_stub/build/esmb-get-file \
		--output "tests/artifacts/selftest/$$(date +%Y%m%d-%H%M%S)" $(SELFTEST_ARGS)

.PHONY: qtest
qtest: ## Run the series' own qtests in QEMU's build tree
	@$(PROVISION) qemu-qtest

.PHONY: soak
soak: venv stub ## Run the long tests: kills under load, many guests
	@$(call with,$(ALL)) env HCALLD_REQUIRE=qemu,kernel $(PYTEST) -m soak $(PYTEST_ARGS)

.PHONY: bench
bench: venv stub ## Measure, and print the ratios
	@$(PROVISION) system bench
	@$(call with,qemu stub) env HCALLD_REQUIRE=qemu $(PYTEST) -m bench -s $(PYTEST_ARGS)

.PHONY: test-asan
test-asan: venv stub ## Run the tests with QEMU built with AddressSanitizer
	@$(PROVISION) qemu-qtest --asan
	@$(call with,qemu-asan stub) env HCALLD_ASAN=1 $(call require,qemu,integration$(comma)qemu) -m 'qemu and not kernel and not soak and not bench' $(PYTEST_ARGS)

.PHONY: dist
dist: venv ## Build the wheel
	@$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .

.PHONY: clean
clean: ## Remove what was made in the tree; the cache outside it stays
	@rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache tests/artifacts
	@find . -name __pycache__ -prune -exec rm -rf {} +
	@for part in guest_stub guest_stub/x86 ioctl_shim; do [ ! -f $$part/Makefile ] || $(MAKE) -C $$part clean; done
