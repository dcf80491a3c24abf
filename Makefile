# Everything a person types here. Sources of truth: go.mod for Go modules,
# .ci/deps for Debian packages, this file for the linter's version.
.DEFAULT_GOAL := help
.PHONY: help build test e2e-kernel demo demo-stop matrix trace diagrams bench faults herd soak lint deps fmt clean FORCE

VERSION := $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo devel)

# The linter is built from source and kept under its version's name, so that
# another version here builds it anew.
GOLANGCI_VERSION := v2.15.0
GOLANGCI := build/bin/golangci-lint-$(GOLANGCI_VERSION)

# One package may take this long under the race detector; e2e takes the most.
TEST_TIMEOUT := 18m

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: build/bodkin ## Build build/bodkin

build/bodkin: FORCE
	@go build -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o $@ ./cmd/bodkin

build/labrun: FORCE
	@go build -buildvcs=false -o $@ ./e2e/labrun

test: deps ## Run all tests under the race detector (as root: nothing is skipped)
	go test -count=1 -race -timeout $(TEST_TIMEOUT) ./...

e2e-kernel: ## Run e2e's tests on ESP in the kernel, in an emulated machine (RUN=PATTERN for some; needs root)
	@.ci/deps kernel
	@e2e/kernel/run.sh $(if $(RUN),-test.run '$(RUN)')

demo: deps build/bodkin build/labrun ## Show edges behind NATs get direct tunnels (KEEP=1 leaves it running; needs root)
	@build/labrun demo $(if $(KEEP),--keep)

demo-stop: build/labrun ## End a demo that was left running (needs root)
	@build/labrun demo-stop

matrix: deps build/bodkin build/labrun ## Try every pair of sites, write build/matrix.json and .md, build/probe.json (needs root)
	@build/labrun matrix

trace: deps build/bodkin build/labrun ## Print the packets of one pair of sites (A=symmetric B=port-restricted; needs root)
	@build/labrun trace $(or $(A),symmetric) $(or $(B),port-restricted)

diagrams: deps build/bodkin build/labrun ## Draw the packets of each strategy into docs/nat.md (needs root)
	@build/labrun diagrams --document docs/nat.md

bench: deps build/bodkin build/labrun ## Measure against strongSwan mediation, write build/bench.json (needs root)
	@build/labrun bench

faults: deps build/bodkin build/labrun ## Break a direct pair in every way, write build/faults.json (RUNS=3; needs root)
	@build/labrun faults --runs $(or $(RUNS),3) --document docs/outages.md

herd: build/bodkin build/labrun ## Kill the rendezvous of many simulated agents, write build/herd.json (AGENTS=1000)
	@build/labrun herd --agents $(or $(AGENTS),1000)

soak: deps build/bodkin build/labrun ## Random faults and an invariant checker, write build/soak.json (MINUTES=10 SEED=N; needs root)
	@build/labrun soak --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

lint: $(GOLANGCI) ## Run the linters of .golangci.yml
	$(GOLANGCI) run ./...

$(GOLANGCI):
	GOBIN=$(CURDIR)/build/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv build/bin/golangci-lint $@

deps: ## Install the Debian packages that tests and demo need and this machine lacks (needs root)
	@.ci/deps

fmt: ## Format all Go files
	go fmt ./...

clean: ## Remove what was built
	rm -rf build
