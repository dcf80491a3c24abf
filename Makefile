# Everything a person types here. Sources of truth: go.mod for Go modules,
# .ci/deps for Debian packages, this file for the linter's version.
.DEFAULT_GOAL := help
.PHONY: help build test e2e-kernel demo demo-stop matrix trace diagrams screenshots bench faults herd soak lint deps fmt clean docs packages FORCE

VERSION := $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo devel)

# The linter is built from source and kept under its version's name, so that
# another version here builds it anew.
GOLANGCI_VERSION := v2.15.0
GOLANGCI := build/bin/golangci-lint-$(GOLANGCI_VERSION)
# The same for the builder of packages.
NFPM_VERSION := v2.45.2
NFPM := build/bin/nfpm-$(NFPM_VERSION)

# Packages of one commit are the same wherever and whenever they are built.
COMMIT_DATE := $(shell git -c safe.directory='*' log -1 --format=%ct 2>/dev/null || echo 0)
DEB_VERSION = $(shell deploy/debian/version '$(VERSION)' $(COMMIT_DATE))
ARCHS := amd64 arm64

# One package may take this long under the race detector; e2e takes the most.
TEST_TIMEOUT := 25m

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

screenshots: deps ## Take pictures of the status page for docs/img, of made-up nodes
	BODKIN_SCREENSHOTS=$(CURDIR)/docs/img go test -count=1 -run '^TestPage(Views|Login)$$' ./rendezvous

bench: deps build/bodkin build/labrun ## Measure against strongSwan mediation, write build/bench.json (needs root)
	@build/labrun bench

faults: deps build/bodkin build/labrun ## Break a direct pair in every way, write build/faults.json (RUNS=3; needs root)
	@build/labrun faults --runs $(or $(RUNS),3) --document docs/outages.md

herd: build/bodkin build/labrun ## Kill the rendezvous of many simulated agents, write build/herd.json (AGENTS=1000)
	@build/labrun herd --agents $(or $(AGENTS),1000)

soak: deps build/bodkin build/labrun ## Random faults and an invariant checker, write build/soak.json (MINUTES=10 SEED=N; needs root)
	@build/labrun soak --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

docs: build/bodkin ## Write docs/cli.md and the tables of docs/configuration.md from the code
	build/bodkin docs markdown > docs/cli.md
	go run ./internal/configdoc

packages: $(ARCHS:%=package-%) ## Build Debian packages into build/packages

# What a package holds beside the binary is the same for all architectures.
build/packages/shared: build/bodkin FORCE
	rm -rf build/packages
	mkdir -p build/packages/completions
	SOURCE_DATE_EPOCH=$(COMMIT_DATE) build/bodkin docs man build/packages/man
	gzip -9n build/packages/man/*.1
	for shell in bash zsh fish; do build/bodkin completion $$shell > build/packages/completions/$$shell || exit; done

package-%: build/packages/shared $(NFPM) FORCE
	mkdir -p build/packages/$*
	CGO_ENABLED=0 GOARCH=$* go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o build/packages/$*/bodkin ./cmd/bodkin
	ARCH=$* DEB_VERSION='$(DEB_VERSION)' SOURCE_DATE_EPOCH=$(COMMIT_DATE) $(NFPM) package --config deploy/nfpm.yaml --packager deb \
		--target 'build/packages/bodkin_$(DEB_VERSION)_$*.deb'

$(NFPM):
	GOBIN=$(CURDIR)/build/bin go install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)
	mv build/bin/nfpm $@

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
