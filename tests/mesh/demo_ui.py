"""``make demo-ui``: the traces of the demo in a real Zipkin, to look at in a browser.

Zipkin comes from Maven Central; Java 17 or newer and mvn have to be there.
"""

import json
import signal
import subprocess
import sys

from mesh.backends import Zipkin, check_java, fetch_zipkin, wait_for_trace
from mesh.demo import SPANS, WITH_CLIENT_SPANS, bold, say
from mesh.mesh import Mesh, wasm_path
from mesh.procs import MeshError, Processes

CLICKS = 5


def send_clicks(mesh: Mesh) -> str:
    """Send some clicks; the trace ID that the gateway gave the last of them."""
    for _ in range(CLICKS):
        reply = mesh.click()
        if reply.status != 200:
            raise MeshError(f"a click failed: {reply}")
    return reply.received("productpage")["x-b3-traceid"][0]


def demo() -> None:
    wasm_path()  # before the download: without a filter there is nothing to show
    say(bold("b3relay demo, with Zipkin"))
    check_java()
    jar = fetch_zipkin()
    with Processes() as processes:
        say("    starting Zipkin, which may take a minute ...")
        zipkin = Zipkin(processes, jar)
        say(f"    starting the mesh without the filter; sending {CLICKS} clicks ...")
        with Mesh(forward="request-id", filter=False, collector=zipkin.address) as mesh:
            broken = send_clicks(mesh)
            # Gateway and productpage; the rest is in traces of its own.
            wait_for_trace(zipkin, broken, 2)
        say(f"    starting the mesh with the filter and its client spans; {CLICKS} clicks ...")
        spans = json.dumps(SPANS)
        with Mesh(forward="request-id", outbound_config=spans, collector=zipkin.address) as mesh:
            whole = send_clicks(mesh)
            wait_for_trace(zipkin, whole, WITH_CLIENT_SPANS.size)
            say()
            say(f"    All traces:            {zipkin.url}?lookback=1h&limit=100")
            say(f"    A click without it:    {zipkin.url}traces/{broken}")
            say(f"    A click with b3relay:  {zipkin.url}traces/{whole}")
            say(f"    Click yourself:        {mesh.url}")
            say()
            say("    Ctrl-C stops everything.")
            signal.pause()


def main() -> int:
    try:
        demo()
    except (MeshError, subprocess.CalledProcessError) as error:
        print(f"demo-ui: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
