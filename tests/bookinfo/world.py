"""Istio's Bookinfo, unmodified and natively, behind Envoys like Istio's sidecars.

The sources come with Istio's module: productpage in Python, details in Ruby, reviews as a
class on Open Liberty, ratings in Node. They forward all headers of tracing; what an
application forwards less, the sidecar takes away before Envoy looks at the call.
"""

import http.client
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

from cluster import bookinfo
from cluster.settings import packages
from docker import debian
from mesh import envoy
from mesh.collector import Collector, Span
from mesh.envoy import Common, Config, Envoy, Wasm
from mesh.mesh import SERVICES, Reply, request, wasm_path
from mesh.ports import HOST, free_port
from mesh.procs import MeshError, Process, Processes, Stacked
from mesh.tree import Node

_TRACING = (
    "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags", "b3",
    "traceparent", "tracestate", "x-ot-span-context", "grpc-trace-bin", "x-cloud-trace-context",
    "sw8", "x-datadog-trace-id", "x-datadog-parent-id", "x-datadog-sampling-priority",
)  # fmt: skip
# What the sidecar removes from the calls, by what is left.
REMOVED: Mapping[str, Collection[str]] = {
    "everything": (),
    "x-request-id": _TRACING,
    "nothing": (*_TRACING, "x-request-id"),
}
# Liberty's, from its server.xml.
_REVIEWS_PORT = 9080
# Where Debian's packages have what Ruby loads.
_RUBY = (
    "lib/ruby/vendor_ruby",
    "lib/ruby/3.1.0",
    "lib/x86_64-linux-gnu/ruby/3.1.0",
    "share/rubygems-integration/all/gems/webrick-1.8.1/lib",
)
_MUTATION = "envoy.http.early_header_mutation.header_mutation"
_TYPE = (
    "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3"
    ".HeaderMutation"
)


def tree(client_spans: bool) -> Node:
    """The trace of a click on /productpage, when it is whole."""

    def server(service: str, path: str, *below: Node) -> Node:
        return Node(service, "SERVER", path, below)

    def called(caller: str, one: Node) -> Node:
        return Node(caller, "CLIENT", one.path, (one,)) if client_spans else one

    ratings = called("reviews", server("ratings", "/ratings/0"))
    calls = (server("details", "/details/0"), server("reviews", "/reviews/0", ratings))
    page = server("productpage", "/productpage", *(called("productpage", one) for one in calls))
    return Node("gateway", "CLIENT", "/productpage", (page,))


class World(Stacked):
    """Keeps the services and the collector running while the sidecars come and go."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.collector = stack.enter_context(Collector())
            self._processes = stack.enter_context(Processes(show_tails=True))
            self._wasm = Path(shutil.copy(wasm_path(), self._processes.directory / "b3relay.wasm"))
            self._inbound = {name: free_port() for name in SERVICES}
            self._outbound = {name: free_port() for name in SERVICES}
            self._app = {name: free_port() for name in SERVICES} | {"reviews": _REVIEWS_PORT}
            self._gateway = free_port()
            self._start_services()
            self._stack = stack.pop_all()
        return self

    def clicks(
        self,
        total: int,
        forwarded: str,
        *,
        spans: int,
        client_spans: bool = False,
        config: str | None = None,
        outbound_config: str | None = None,
    ) -> list[Span]:
        """The spans of clicks of one user, one after the other.

        ``forwarded``: what the services forward, a name of REMOVED; ``spans``: how many
        spans a click should come to; ``client_spans``: Envoy's own; ``config``: b3relay's,
        without it the sidecars are without b3relay.
        """
        wasm = None if config is None else Wasm(self._wasm, config)
        outbound = wasm and Wasm(self._wasm, outbound_config or config)
        envoys = self._start_envoys(REMOVED[forwarded], wasm, outbound, client_spans)
        try:
            self.collector.clear()
            for _ in range(total):
                reply = request(self._gateway, "/productpage")
                if not _page(reply):
                    raise MeshError(f"a click was answered with {reply.status}: {reply.body}")
            self.collector.wait_for(lambda found: len(found) >= total * spans, 15)
            self.collector.wait_quiet(1.2, 10)
            return self.collector.spans()
        finally:
            self._processes.stop(*(one.process for one in envoys))

    def warm_up(self) -> None:
        """Clicks until five in a row are answered well."""
        envoys = self._start_envoys((), None, None, False)
        try:
            good, deadline = 0, time.monotonic() + 120
            while good < 5:
                reply = request(self._gateway, "/productpage")
                good = good + 1 if _page(reply) else 0
                if time.monotonic() > deadline:
                    raise MeshError(f"still no page: {reply.status} {reply.body}")
            self.collector.wait_quiet(1.2, 10)
        finally:
            self._processes.stop(*(one.process for one in envoys))

    def _start_services(self) -> None:
        prepared, sources = bookinfo.prepare(), bookinfo.sources()
        user = self._liberty(prepared)
        ruby = packages()
        commands: dict[str, tuple[Path, Sequence[str | Path], dict[str, str]]] = {
            "productpage": (
                sources / "productpage",
                [
                    sys.executable, "-P", "-m", "gunicorn", "productpage:app", "-w", "1",
                    "-b", f"{HOST}:{self._app['productpage']}", "--keep-alive", "2", "-k", "gevent",
                ],
                {"PYTHONPATH": f"{prepared / 'productpage'}:{sources / 'productpage'}",
                 "FLOOD_FACTOR": "0"},
            ),
            "details": (
                sources / "details",
                [ruby / "usr/bin/ruby3.1", "details.rb", str(self._app["details"])],
                {
                    **debian.environment(ruby),
                    "RUBYLIB": ":".join(str(ruby / "usr" / place) for place in _RUBY),
                    "SERVICE_VERSION": "v1", "ENABLE_EXTERNAL_BOOK_SERVICE": "false",
                },
            ),
            "reviews": (
                user,
                ["java", "-jar", prepared / "wlp/bin/tools/ws-server.jar", "defaultServer"],
                {"WLP_USER_DIR": str(user), "WLP_OUTPUT_DIR": str(user / "output"),
                 "ENABLE_RATINGS": "true", "STAR_COLOR": "black"},
            ),
            "ratings": (
                sources / "ratings",
                ["node", "ratings.js", str(self._app["ratings"])],
                {"NODE_PATH": str(prepared / "ratings/node_modules"), "SERVICE_VERSION": "v1"},
            ),
        }  # fmt: skip
        hosts = self._processes.directory / "hosts"
        names = " ".join(("localhost", *SERVICES))
        hosts.write_text(f"{HOST} {names}\n")
        checks = {}
        for name, (folder, command, own) in commands.items():
            # Its calls go to its sidecar, with the callee's name as the host.
            port = str(self._outbound[name])
            ports = {f"{callee.upper()}_SERVICE_PORT": port for callee in SERVICES}
            inside = 'mount --bind "$1" /etc/hosts && cd "$2" && shift 2 && exec "$@"'
            process = self._processes.start(
                f"app-{name}",
                ["unshare", "--mount", "sh", "-c", inside, "sh", hosts, folder, *command],
                {**ports, **own},
            )
            checks[process] = partial(_answers, self._app[name], _READY[name])
        self._processes.wait_ready(checks, 120)

    def _liberty(self, prepared: Path) -> Path:
        """A server of Liberty with the class of reviews; its folder is not the shared one."""
        user = self._processes.directory / "liberty"
        server = user / "servers/defaultServer"
        (server / "apps").mkdir(parents=True)
        shutil.copy(prepared / "wlp/usr/servers/defaultServer/server.xml", server)
        # Liberty takes a folder of this name as well as an archive.
        shutil.copytree(prepared / "reviews", server / "apps/reviews-application-1.0.war")
        return user

    def _start_envoys(
        self,
        removed: Collection[str],
        wasm: Wasm | None,
        outbound: Wasm | None,
        client_spans: bool,
    ) -> list[Envoy]:
        common = Common(self.collector.address, client_spans=client_spans)
        bootstraps = {
            name: envoy.sidecar(
                common,
                name,
                admin_port=free_port(),
                inbound_port=self._inbound[name],
                outbound_port=self._outbound[name],
                app_port=self._app[name],
                callees=self._inbound,
                wasm=wasm,
                outbound_wasm=outbound,
            )
            for name in SERVICES
        }
        for bootstrap in bootstraps.values():
            _remove(bootstrap, removed)
        bootstraps["gateway"] = envoy.gateway(
            common,
            admin_port=free_port(),
            port=self._gateway,
            callee="productpage",
            callee_port=self._inbound["productpage"],
        )
        envoys = [Envoy(self._processes, *one, concurrency=1) for one in bootstraps.items()]
        for one in envoys:
            one.start()
        checks: dict[Process, Any] = {one.process: one.ready for one in envoys}
        self._processes.wait_ready(checks, 60)
        return envoys


_READY = {
    "productpage": "/productpage",
    "details": "/health",
    "reviews": "/health",
    "ratings": "/health",
}


def _page(reply: Reply) -> bool:
    """Whether it is the page, with reviews and ratings."""
    return reply.status == 200 and "Book Reviews" in str(reply.body)


def _answers(port: int, path: str) -> bool:
    try:
        return request(port, path, timeout=10).status == 200
    except (OSError, http.client.HTTPException):
        return False


def _remove(bootstrap: Config, names: Collection[str]) -> None:
    """From the calls, before Envoy makes a request ID, routes and traces them."""
    if not names:
        return
    (listener,) = [
        one
        for one in bootstrap["static_resources"]["listeners"]
        if one["traffic_direction"] == "OUTBOUND"
    ]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    mutations = [{"remove": name} for name in names]
    manager["early_header_mutation_extensions"] = [
        {"name": _MUTATION, "typed_config": {"@type": _TYPE, "mutations": mutations}}
    ]
