# What a developer and CI run. Nothing here is needed to use Hypha:
# `go run ./cmd/hypha serve` starts it.

GO ?= go

# Pinned, so that a lint run of today passes tomorrow. `go run` builds it once:
# about 80 s on two cores, from then on it comes from Go's cache.
GOLANGCI_LINT = $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# What runs under the race detector: where goroutines meet. Not the store, and
# not the program as a whole: modernc.org/sqlite is 19 times slower there.
RACED = ./internal/lane/... ./internal/catalog/... ./internal/registry/... ./internal/send/... ./internal/auth/... ./signature/...
# With fake clocks on one processor: on several, the race detector itself may
# crash beside testing/synctest (golang/go#78156).
RACED_SYNCTEST = ./internal/cluster/... ./internal/commit/... ./internal/dispatch/... ./internal/replay/...

.PHONY: help build run test test-deps fuzz lint vulncheck bench soak

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

build: ## build bin/hypha
	$(GO) build -trimpath -o bin/hypha ./cmd/hypha

run: ## start a server in ./hypha-data
	$(GO) run ./cmd/hypha serve

test: test-deps ## vet, all tests, and those that race under the race detector
	$(GO) vet ./...
	$(GO) test ./...
	$(GO) test -race $(RACED)
	$(GO) test -race -cpu 1 $(RACED_SYNCTEST)

test-deps:
	@scripts/test-deps

# For each fuzz target: a time, or a number of inputs as in 5000x.
FUZZTIME ?= 30s

fuzz: ## every fuzz target, each for FUZZTIME
	@GO="$(GO)" FUZZTIME="$(FUZZTIME)" scripts/fuzz

# govulncheck is a target of its own: it asks a database on the internet, which
# not every machine reaches.
lint: ## formatting, vet and golangci-lint
	@unformatted="$$(git ls-files -co --exclude-standard -- '*.go' | xargs gofmt -l)"; \
	if [ -n "$$unformatted" ]; then echo "not formatted with gofmt:" >&2; echo "$$unformatted" >&2; exit 1; fi
	$(GO) vet ./...
	$(GOLANGCI_LINT) run ./...

# Pinned, as the linter is; what it knows comes from the database.
GOVULNCHECK_VERSION = v1.9.0

vulncheck: ## known vulnerabilities; says so where the database can't be reached
	@GO="$(GO)" GOVULNCHECK_VERSION="$(GOVULNCHECK_VERSION)" scripts/vulncheck

bench: ## the benchmarks of Go, and the server under load
	$(GO) test -run '^$$' -bench . -benchmem ./signature/... ./internal/...
	$(GO) run ./cmd/hypha bench

soak: ## the long variants of tests, a backlog of 1e6, a history of 1e7; takes an hour or more
	HYPHA_SOAK=1 $(GO) test -timeout 6h -count 1 ./...
	$(GO) run ./cmd/hypha bench --scenario backlog,history
