# make help lists the targets.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN     := bin/sidecar
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
GOFILES := $(shell find cmd internal -name '*.go' -not -name '*_test.go') go.mod go.sum $(wildcard internal/outbox/migrations/*.sql)
VENV    := .cache/venv
VENV_AIRFLOW_2 := .cache/venv-airflow2
PYTHON  ?= python3.11
GOLANGCI_VERSION := v2.15.0

# stage runs a part of the tests and prints how long it took. The "or" is needed:
# set -e does not see a failure before the last && of a list.
stage = @start=$$SECONDS; echo "==> $(1)"; { $(2); } || { echo "FAILED: $(1)" >&2; exit 1; }; echo "<== $(1): $$((SECONDS - start)) s"

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

.PHONY: build
build: $(BIN) ## Build bin/sidecar
$(BIN): $(GOFILES) | need-go
	CGO_ENABLED=1 go build -trimpath -ldflags "-s -w -X main.buildVersion=$(VERSION)" -o $@ ./cmd/sidecar

# The sidecar as it goes into the image and the wheel: nothing is loaded at run time,
# on any Linux, and the same sources give the same bytes. The wheel's has a broker for
# tests in it, the image's has not.
STATIC  := .cache/static/sidecar
TRIAL   := .cache/static/with-embedded-broker/sidecar
$(STATIC): TAGS = ,noembeddedbroker
$(STATIC) $(TRIAL): $(GOFILES) internal/outbox/sqlite_unused.h | need-go
	CGO_ENABLED=1 CGO_CFLAGS="-O2 -ffunction-sections -fdata-sections -fno-unwind-tables -fno-asynchronous-unwind-tables -include $(CURDIR)/internal/outbox/sqlite_unused.h" \
		go build -trimpath -buildvcs=false -tags sqlite_omit_load_extension,osusergo,netgo,grpcnotrace$(TAGS) \
		-ldflags "-s -w -buildid= -X main.buildVersion=$(VERSION) -linkmode external -extldflags '-static -Wl,--gc-sections -Wl,-z,noseparate-code'" -o $@ ./cmd/sidecar

.PHONY: static
static: $(STATIC) ## Build the static binary for a machine of your own: it goes into the image too
	@echo $(STATIC)

.PHONY: wheel
wheel: $(TRIAL) $(VENV)/demo.stamp ## Build dist/*.whl: the Python package with a static sidecar in it
	@rm -f dist/workflow_results-*.whl
	@$(VENV)/bin/python examples/python/build_wheel.py $(TRIAL) dist

.PHONY: image
image: ## Build the image workflow-results-sidecar:VERSION, with buildah or docker (TOOL=docker)
	@tool=$$(for tool in $(or $(TOOL),buildah docker); do command -v "$$tool" && break; done) || { echo "missing: $(or $(TOOL),buildah or docker). Install it (Debian, Ubuntu): apt-get install buildah" >&2; exit 1; }; \
		"$$tool" build --build-arg VERSION=$(VERSION) -t workflow-results-sidecar:$(VERSION) .

# What the image holds, also where no base image can be pulled: its build stage and its test call this.
IMAGE_ROOT ?= .cache/image
.PHONY: image-root
image-root: $(STATIC)
	@rm -rf $(IMAGE_ROOT)
	@install -D -m 0755 $(STATIC) $(IMAGE_ROOT)/sidecar
	@install -D -m 0644 /etc/ssl/certs/ca-certificates.crt $(IMAGE_ROOT)/etc/ssl/certs/ca-certificates.crt
	@install -d -m 0770 $(IMAGE_ROOT)/run/workflow-results
	@install -d -m 0700 $(IMAGE_ROOT)/var/lib/workflow-results
	@install -d -m 1777 $(IMAGE_ROOT)/tmp
	@$(GO_LICENSES) save ./cmd/sidecar --save_path $(IMAGE_ROOT)/licenses 2>/dev/null
	@install -m 0644 "$$(go env GOROOT)/LICENSE" $(IMAGE_ROOT)/licenses/LICENSE.go

.PHONY: demo
demo: build $(VENV)/demo.stamp ## Show the whole way: LangGraph, socket, outbox, Kafka (embedded), await
	@PYTHON=$(VENV)/bin/python SIDECAR=$(BIN) ./examples/demo.sh

.PHONY: demo-airflow
demo-airflow: need-test build kafka $(VENV)/dev.stamp ## Show the whole loop on a real Kafka and a real Airflow
	@cd examples/python && WORKFLOW_RESULTS_SIDECAR="$(CURDIR)/$(BIN)" PYTHONPATH=tests ../../$(VENV)/bin/python demo/run_airflow_demo.py

.PHONY: test
test: need-test ## Run all tests, real Kafka included
	@start=$$SECONDS; $(MAKE) --no-print-directory test-unit test-kafka test-python test-airflow test-wheel test-curl test-image test-k8s test-property test-page lint; echo "all tests passed in $$((SECONDS - start)) s"

.PHONY: test-unit
test-unit: need-go ## Unit tests and fault injection with -race
	$(call stage,units with -race,gofmt -l cmd internal test | (! grep .) && go vet -tags kafka ./... && go test -race -timeout 10m ./cmd/... ./internal/...)

.PHONY: kafka
kafka: ## Fetch Apache Kafka's jars (once)
	@./test/kafka/fetch.sh

.PHONY: test-kafka
test-kafka: need-go kafka ## Real processes against a real Kafka
	$(call stage,real Kafka,go test -tags kafka -timeout 25m -count=1 ./test/... ./internal/testkit/...)

.PHONY: test-python
test-python: build kafka $(VENV)/dev.stamp ## The Python package: real sidecar, Kafka, LangGraph and Airflow
	$(call stage,Python,cd examples/python && SIDECAR_BIN="$(CURDIR)/$(BIN)" ../../$(VENV)/bin/python -m pytest -q -m "not standalone" tests && ../../$(VENV)/bin/ruff check . && ../../$(VENV)/bin/mypy --strict src)

.PHONY: test-airflow
test-airflow: build kafka $(VENV)/dev.stamp ## A whole Airflow: scheduler, triggerer, deferred tasks
	$(call stage,whole Airflow,cd examples/python && SIDECAR_BIN="$(CURDIR)/$(BIN)" ../../$(VENV)/bin/python -m pytest -q -m standalone tests/test_airflow_standalone.py)

.PHONY: test-long
test-long: ## What does not fit into make test: a second Airflow, a million rows
	@echo "make test-long: what make test leaves out"
	@echo "  test-page with ROWS=1000000: it takes a minute to fill"
	@echo "  test-airflow-2: the Airflow tests on Airflow 2.11; a second whole Airflow costs minutes of set-up in each CI run"
	@start=$$SECONDS; $(MAKE) --no-print-directory test-airflow-2 && $(MAKE) --no-print-directory test-page ROWS=1000000; echo "all long tests passed in $$((SECONDS - start)) s"

.PHONY: test-airflow-2
test-airflow-2: build kafka $(VENV_AIRFLOW_2)/dev.stamp ## The Airflow side on Airflow 2.11, in an environment of its own
	$(call stage,Airflow 2.11,cd examples/python && SIDECAR_BIN="$(CURDIR)/$(BIN)" ../../$(VENV_AIRFLOW_2)/bin/python -m pytest -q -W ignore::DeprecationWarning tests/test_airflow.py tests/test_airflow_parts.py tests/test_airflow_standalone.py)

.PHONY: test-wheel
test-wheel: wheel ## The wheel in a fresh virtual environment: its sidecar starts and publishes
	$(call stage,wheel,$(PYTHON) -m venv --clear .cache/wheel-venv && .cache/wheel-venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-index dist/workflow_results-*.whl && env -u WORKFLOW_RESULTS_SIDECAR .cache/wheel-venv/bin/python examples/python/tests/wheel_check.py)

.PHONY: test-curl
test-curl: build ## Every call of the socket with curl
	$(call stage,curl,SIDECAR=$(BIN) ./test/curl.sh)

.PHONY: test-image
test-image: need-buildah build ## The image: built, run, small, the same bytes again
	$(call stage,image,$(MAKE) --no-print-directory image-root VERSION=$(VERSION) && IMAGE_ROOT=$(IMAGE_ROOT) VERSION=$(VERSION) ./test/image.sh)

.PHONY: test-k8s
test-k8s: need-go ## The manifests: built, judged by the API server's code, and a pod's life played out
	$(call stage,Kubernetes manifests,cd test/k8s && gofmt -l . | (! grep .) && go vet . && go test -timeout 10m -count=1 .)

.PHONY: test-property
test-property: build $(VENV)/dev.stamp ## Requests made from api/openapi.yaml: no 5xx, as documented, no stored lie
	$(call stage,properties of the API,$(PROPERTY) test/property && $(VENV)/bin/ruff check --config examples/python/pyproject.toml test/property)

# axe-core comes out of a wheel that carries it: pip is here already, npm is not.
AXE := .cache/axe/axe.min.js
AXE_WHEEL := axe-playwright-python==0.1.8 --hash=sha256:fdd263c998388f1a8e67cad02677e612d946248bd44d163be5e8650ea31f95f8
$(AXE): | need-python
	$(PYTHON) -m venv $(@D)/venv && echo '$(AXE_WHEEL)' >$(@D)/requirements.txt
	$(@D)/venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes -d $(@D) -r $(@D)/requirements.txt
	$(@D)/venv/bin/python -m zipfile -e $(@D)/axe_playwright_python-*.whl $(@D)/wheel && mv $(@D)/wheel/axe_playwright_python/axe.min.js $@

.PHONY: test-page
test-page: need-go need-page $(AXE) ## The admin address's page in a real browser (ROWS=100000 results in the largest outbox)
	$(call stage,page,cd test/page && go vet ./... && AXE="$(CURDIR)/$(AXE)" go test -timeout 15m -count=1 . -rows $(ROWS))
ROWS ?= 100000

.PHONY: screenshots
screenshots: need-go need-page ## Take the pictures in docs/page of a sidecar at work (ten minutes: the plots show a past)
	cd test/page && go test -timeout 30m -count=1 -run '^TestScreenshots$$' -v . -screenshots "$(CURDIR)/docs/page" -looks 300

.PHONY: property
property: build $(VENV)/dev.stamp ## The same, long: EXAMPLES requests for each operation (20000; some hours)
	EXAMPLES=$(EXAMPLES) $(PROPERTY) -s test/property
EXAMPLES ?= 20000
PROPERTY = SIDECAR_BIN="$(CURDIR)/$(BIN)" $(VENV)/bin/python -m pytest -q -p no:cacheprovider

.PHONY: bench
bench: need-test kafka $(STATIC) bench-peers bench-growth bench-allocs bench-python bench-fleet ## The figures: the sidecar beside its peers, and three runs of its own; needs a quiet machine (over an hour)
	go test -tags kafka -run '^$$' -bench . -skip '^Benchmark(Peers|Growth|Fleet)$$' -benchtime 1x -count 3 -timeout 60m ./test/bench -sidecar $(CURDIR)/$(STATIC) -for 4s -backlog-csv $(CURDIR)/docs/performance/backlog.csv
	go test -run '^$$' -bench . ./internal/...
	@$(MAKE) --no-print-directory plots

.PHONY: bench-peers
bench-peers: ROUNDS = 5
bench-peers: need-go need-python need-peers kafka $(STATIC) .cache/bench/bento .cache/venv-bench/stamp ## The sidecar beside Bento, aiokafka, rsyslog and what bounds it (ROUNDS=5, FOR=5s a run: 45 minutes)
	go test -tags kafka -run '^$$' -bench '^BenchmarkPeers$$' -benchtime 1x -timeout 3h ./test/bench -sidecar $(CURDIR)/$(STATIC) -rounds $(ROUNDS) -for $(FOR) -samples $(CURDIR)/docs/performance/peers.json
	@$(MAKE) --no-print-directory plots
.PHONY: bench-growth
bench-growth: ROUNDS = 5
bench-growth: need-go kafka $(STATIC) ## The sidecar with 1000 to LARGEST=10000000 results in its outbox (ROUNDS=5, FOR=5s a run: 15 minutes, 20 GB of disk)
	go test -tags kafka -run '^$$' -bench '^BenchmarkGrowth$$' -benchtime 1x -timeout 3h ./test/bench -sidecar $(CURDIR)/$(STATIC) -rounds $(ROUNDS) -for $(FOR) -largest $(LARGEST) -samples $(CURDIR)/docs/performance/growth.json
	@$(MAKE) --no-print-directory plots
LARGEST ?= 10000000

# What a request allocates, one file for each state of the code. The number of results is
# fixed: what an outbox allocates for one depends on how many it has.
ALLOCATIONS := docs/performance/allocations
BENCHSTAT := go run golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
.PHONY: bench-allocs
bench-allocs: need-go ## What a request allocates, beside the newest state kept; KEEP=NAME keeps this one as the next (two minutes)
	@mkdir -p .cache/bench
	(echo "# $$(git describe --always --dirty --abbrev=10)"; go test -run '^$$' -bench '^BenchmarkRequest$$' -benchtime 20000x -count 10 ./internal/ipc) | tee .cache/bench/now.txt
	@$(BENCHSTAT) $$(ls $(ALLOCATIONS)/*.txt | tail -n 1) .cache/bench/now.txt
ifdef KEEP
	@cp .cache/bench/now.txt $(ALLOCATIONS)/$$(printf '%02d' $$(($$(ls $(ALLOCATIONS)/*.txt | wc -l) + 1)))-$(KEEP).txt
	@$(MAKE) --no-print-directory plots
endif

FOR ?= 5s
.cache/bench/bento: test/bench/peers/bento/main.go test/bench/peers/bento/go.mod | need-go
	cd $(<D) && go build -trimpath -o $(CURDIR)/$@ .
.cache/venv-bench/stamp: test/bench/peers/aiokafka/requirements.txt | need-python
	$(PYTHON) -m venv .cache/venv-bench
	.cache/venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.PHONY: bench-python
bench-python: build kafka $(VENV)/dev.stamp ## The Python client beside a bare exchange, and the waiting hub (5 rounds: 4 minutes)
	cd examples/python && WORKFLOW_RESULTS_SIDECAR="$(CURDIR)/$(BIN)" ../../$(VENV)/bin/python bench/all.py --samples "$(CURDIR)/docs/performance/python.json"
	@$(MAKE) --no-print-directory plots

.PHONY: bench-fleet
bench-fleet: need-go need-fleet kafka $(STATIC) ## Many sidecars beside one broker, in both modes of delivery (FLEET=200: 5 minutes)
	go test -tags kafka -run '^$$' -bench '^BenchmarkFleet$$' -benchtime 1x -timeout 20m ./test/bench -sidecar $(CURDIR)/$(STATIC) -fleet $(FLEET) -for 30s -samples $(CURDIR)/docs/performance/fleet.json
	@$(MAKE) --no-print-directory plots
FLEET ?= 200

.PHONY: torture
torture: need-test kafka ## Kills, power cuts, faults and a broker's troubles in numbers (ROUNDS=200 kills in each mode of delivery)
	$(call stage,torture,go test -tags kafka -run '^Test(Killed|Power|ConnectionsThatBreak|TopicsDeleted|IDsExpired|LeadersMove|OlderBroker|SlowBroker|BrokerAway$$|RightTakenAway)' -count 1 -v -timeout 3h ./test -rounds $(ROUNDS) -cuts $$(($(ROUNDS) / 10)) -away 10m)
ROUNDS ?= 200

.PHONY: fuzz
fuzz: need-go ## Fuzz the decoder, the batch stream and whole requests, FUZZTIME each (1m)
	go test ./internal/result -run '^$$' -fuzz '^FuzzDecode$$' -fuzztime $(FUZZTIME)
	go test ./internal/result -run '^$$' -fuzz '^FuzzWellFormed$$' -fuzztime $(FUZZTIME)
	go test ./internal/ipc -run '^$$' -fuzz '^FuzzBatch$$' -fuzztime $(FUZZTIME)
	go test ./internal/ipc -run '^$$' -fuzz '^FuzzQuick$$' -fuzztime $(FUZZTIME)
FUZZTIME ?= 1m

.PHONY: soak
soak: need-test kafka ## An hour at 500 results/s with retention on: nothing grows (SOAK=1h)
	$(call stage,soak,go test -tags kafka -run '^TestSoak$$' -count 1 -v -timeout 3h ./test -soak $(SOAK) -soak-csv $(CURDIR)/docs/reliability/soak.csv)
	@$(MAKE) --no-print-directory plots
SOAK ?= 1h

.PHONY: plots
plots: need-go .cache/venv-plot/stamp ## Draw the pictures and write the tables in docs/ from what was sampled
	@.cache/venv-plot/bin/python test/plot/soak.py docs/reliability/soak.csv docs/reliability/soak.svg
	@.cache/venv-plot/bin/python test/plot/peers.py docs/performance/peers.json docs/PERFORMANCE.md docs/performance/peers.svg
	@.cache/venv-plot/bin/python test/plot/backlog.py docs/performance/backlog.csv docs/performance/backlog.svg
	@.cache/venv-plot/bin/python test/plot/growth.py docs/performance/growth.json docs/PERFORMANCE.md
	@$(BENCHSTAT) -filter '.unit:(B/op OR allocs/op)' $$(cd $(ALLOCATIONS) && for file in *.txt; do echo "$${file%.txt}=$(ALLOCATIONS)/$$file"; done) | .cache/venv-plot/bin/python test/plot/allocations.py docs/PERFORMANCE.md
	@.cache/venv-plot/bin/python test/plot/python.py docs/performance/python.json docs/PERFORMANCE.md
	@.cache/venv-plot/bin/python test/plot/fleet.py docs/performance/fleet.json docs/PERFORMANCE.md
.cache/venv-plot/stamp: test/plot/requirements.txt | need-python
	$(PYTHON) -m venv .cache/venv-plot
	.cache/venv-plot/bin/python -m pip install --quiet --disable-pip-version-check -r test/plot/requirements.txt
	@touch $@

.PHONY: lint
lint: .cache/golangci-$(GOLANGCI_VERSION)/golangci-lint ## golangci-lint with the list in .golangci.yml
	$(call stage,lint,$(LINT) --build-tags kafka ./... && for module in test/k8s test/page; do (cd $$module && $(LINT) --config $(CURDIR)/.golangci.yml ./...) || exit 1; done)
LINT = $(CURDIR)/.cache/golangci-$(GOLANGCI_VERSION)/golangci-lint run
.cache/golangci-$(GOLANGCI_VERSION)/golangci-lint: | need-go
	@echo "building golangci-lint $(GOLANGCI_VERSION) (once, some minutes)"
	GOBIN=$(CURDIR)/$(@D) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

# Go's own library (BSD-3-Clause) and SQLite (public domain) are not listed by the tool.
.PHONY: licences
licences: need-go ## List the licences of the modules in the binary; fail on one that is not permissive
	@$(GO_LICENSES) report ./cmd/sidecar 2>/dev/null | sed 's/,.*,/ /' | sort
	@out=$$($(GO_LICENSES) check --allowed_licenses=$(PERMISSIVE) ./cmd/sidecar 2>&1) || { grep -vE '^([WI][0-9]|/)' <<<"$$out" >&2; echo "FAILED: a licence is not among $(PERMISSIVE)" >&2; exit 1; }
	@echo "all are among $(PERMISSIVE)"
GO_LICENSES := go run github.com/google/go-licenses@v1.6.0
PERMISSIVE  := Apache-2.0,BSD-2-Clause,BSD-3-Clause,ISC,MIT

.PHONY: vulncheck
vulncheck: need-go ## Look for known vulnerabilities in what the binary calls (needs https://vuln.go.dev, or GOVULNDB)
	@out=$$($(GOVULNCHECK) $(if $(GOVULNDB),-db $(GOVULNDB)) ./... 2>&1) && { echo "$$out"; exit 0; }; echo "$$out" >&2; \
		if grep -q 'fetching vulnerabilities' <<<"$$out"; then echo "NOT CHECKED: the vulnerability database cannot be reached; nothing is known of this build" >&2; else echo "FAILED: see above" >&2; fi; exit 1
GOVULNCHECK := go run golang.org/x/vuln/cmd/govulncheck@v1.9.0

.PHONY: clean
clean: ## Remove what was built and fetched
	rm -rf bin dist .cache

$(VENV)/demo.stamp: examples/python/requirements-demo.txt examples/python/pyproject.toml | need-python
	@echo "making the virtual environment $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r examples/python/requirements-demo.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e examples/python
	@touch $@
$(VENV)/dev.stamp: examples/python/requirements-dev.txt $(VENV)/demo.stamp
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r examples/python/requirements-dev.txt
	@touch $@

$(VENV_AIRFLOW_2)/dev.stamp: examples/python/requirements-airflow-2.txt examples/python/pyproject.toml | need-python
	@echo "making the virtual environment $(VENV_AIRFLOW_2)"
	$(PYTHON) -m venv $(VENV_AIRFLOW_2)
	$(VENV_AIRFLOW_2)/bin/python -m pip install --quiet --disable-pip-version-check -r examples/python/requirements-airflow-2.txt
	$(VENV_AIRFLOW_2)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e examples/python
	@touch $@

# What we cannot install ourselves is named at once, with the command.
need = @command -v $(1) >/dev/null || { echo "missing: $(1). Install it (Debian, Ubuntu): $(2)" >&2; exit 1; }
.PHONY: need-go need-python need-buildah need-page need-peers need-fleet need-test
need-go:
	$(call need,go,see https://go.dev/doc/install (1.26 or later))
	$(call need,gcc,apt-get install gcc)
need-python:
	$(call need,$(PYTHON),apt-get install python3 python3-venv (3.11 or later; or make PYTHON=python3))
need-buildah:
	$(call need,buildah,apt-get install buildah)
need-page:
	$(call need,chromium,apt-get install chromium)
need-peers:
	$(call need,java,apt-get install openjdk-17-jre-headless)
	$(call need,rsyslogd,apt-get install rsyslog-kafka)
need-fleet:
	$(call need,java,apt-get install openjdk-17-jre-headless)
	$(call need,ss,apt-get install iproute2)
need-test: need-go need-python need-buildah need-page
	$(call need,curl,apt-get install curl)
	$(call need,java,apt-get install openjdk-17-jre-headless)
	$(call need,mvn,apt-get install maven)
	$(call need,mkfs.ext4,apt-get install e2fsprogs)
	$(call need,promtool,apt-get install prometheus)
