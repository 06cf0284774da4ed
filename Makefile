# Isthmus. `make` alone lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
GO          ?= go
BIN         := $(CURDIR)/bin
VERSION     ?= 0.1.0-dev
KEEP        ?=

# One set of flags for build, vet and test, so that nothing is compiled twice.
export CGO_ENABLED := 0
export GOFLAGS     := -trimpath

KUBE_VERSION  := v1.36.3
ISTIO_VERSION := 1.31.0
LDFLAGS       := -s -w -X github.com/isthmus-mesh/isthmus/internal/version.version=$(VERSION)
KUBE_LDFLAGS  := -s -w \
	-X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION) -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36 \
	-X k8s.io/client-go/pkg/version.gitVersion=$(KUBE_VERSION) -X k8s.io/client-go/pkg/version.gitMajor=1 -X k8s.io/client-go/pkg/version.gitMinor=36 \
	-X istio.io/istio/pkg/version.buildVersion=$(ISTIO_VERSION) -X istio.io/istio/pkg/version.buildTag=$(ISTIO_VERSION)

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: product lab ## build every program into bin/

.PHONY: product
product: ## build isthmus, isthmus-controller and ztunnel
	@echo "building isthmus, isthmus-controller and ztunnel"
	@$(GO) build -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/isthmus ./cmd/isthmus-controller
	@$(GO) build -tags grpcnotrace -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/ztunnel

.PHONY: lab
lab: ## build the lab (the first time compiles Kubernetes and Istio: some minutes)
	@echo "building isthmus-lab"
	@cd lab && $(GO) build -ldflags '$(LDFLAGS)' -o $(BIN)/isthmus-lab ./cmd/isthmus-lab
	@echo "building isthmus-lab-kube: etcd, Kubernetes $(KUBE_VERSION) and Istio $(ISTIO_VERSION) (6 minutes on 2 cores the first time, seconds afterwards)"
	@cd lab && $(GO) build -ldflags '$(KUBE_LDFLAGS)' -o $(BIN)/isthmus-lab-kube ./cmd/isthmus-lab-kube

.PHONY: clients
clients: ## install the AWS CLI and jq, with which the tests drive the guide, on a Debian machine
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq awscli jq

# CI must test with other people's clients, so there they are installed first: as root, where there is apt-get.
ifeq ($(CI),true)
ifeq ($(shell id -u)$(if $(shell command -v apt-get),apt),0apt)
test: clients
endif
endif

.PHONY: test
test: build ## run every test except the demo
	$(GO) vet ./...
	cd lab && $(GO) vet ./...
	ISTHMUS_BIN=$(BIN) ISTHMUS_TEST_KUBE=$(BIN)/isthmus-lab-kube $(GO) test -vet=off $$($(GO) list ./... | grep -v /test/soak)
	ISTHMUS_SOAK=2m $(GO) test -vet=off -count=1 ./test/soak
	cd lab && ISTHMUS_BIN=$(BIN) ISTHMUS_LAB_KUBE=$(BIN)/isthmus-lab-kube $(GO) test -vet=off -p 1 -timeout 30m ./...

.PHONY: demo
demo: build ## run scenario 2 of the guide from nothing to the last exercise (KEEP=1 leaves the lab up)
	$(BIN)/isthmus lab run 2 $(if $(KEEP),--keep)

.PHONY: soak
soak: ## let proxies work for 30 minutes while everything around them changes; figures go to bench/results
	ISTHMUS_SOAK=30m ISTHMUS_SOAK_REPORT=$(CURDIR)/bench/results/$$(date -u +%F)-soak.txt \
	ISTHMUS_SOAK_COMMIT=$$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown) $(GO) test -vet=off -count=1 -timeout 45m -v ./test/soak

.PHONY: bench
bench: product ## measure ztunnel against TCP and TLS relays, in namespaces of its own
	$(GO) run ./bench

.PHONY: lint
lint: ## run golangci-lint (fetched through the Go module proxy)
	$(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 run ./...

.PHONY: fmt
fmt: ## format the Go code
	gofmt -w $$(git ls-files '*.go')

.PHONY: generate
generate: ## regenerate the generated files
	$(GO) generate ./...

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN)
