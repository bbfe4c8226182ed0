"""The programs that a user of the cluster has in the path."""

import os
import shlex
from pathlib import Path

from cluster.settings import HUB, ISTIO_TAG, binary
from istio.tools import CONTROL_PLANE, istio
from mesh.golang import TOOLS

# As the released istioctl has them; and what the public build of Envoy, which the
# images have, lacks of Istio's own.
_INSTALL = {
    "hub": HUB,
    "tag": ISTIO_TAG,
    "values.telemetry.v2.prometheus.enabled": "false",
    **{
        f"values.pilot.env.{name}": CONTROL_PLANE[name]
        for name in ("PILOT_ENABLE_METADATA_EXCHANGE", "PILOT_ENABLE_ALPN_FILTER")
    },
}
# An Envoy reports its spans at once, and not after 5 s: a test waits for what comes.
_AT_ONCE = """\
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  meshConfig:
    defaultConfig:
      runtimeValues:
        tracing.zipkin.flush_interval_ms: "200"
        tracing.opentelemetry.flush_interval_ms: "200"
"""
_ISTIOCTL = """\
#!/bin/sh
[ "$1" = install ] || exec {program} "$@"
shift
exec {program} install -f {at_once} {settings} "$@"
"""


def install(directory: Path, access: Path) -> dict[str, str]:
    """The environment of a user: kubectl, istioctl, and a release of Istio."""
    tools = directory / "tools"
    tools.mkdir()
    (tools / "kubectl").symlink_to(binary("kubectl"))
    (tools / "oras").symlink_to(TOOLS / "go/bin/oras")
    settings = shlex.join(
        word for name, value in _INSTALL.items() for word in ("--set", f"{name}={value}")
    )
    at_once = directory / "at-once.yaml"
    at_once.write_text(_AT_ONCE)
    istioctl = tools / "istioctl"
    istioctl.write_text(
        _ISTIOCTL.format(
            program=istio().binary("istioctl"),
            at_once=shlex.quote(str(at_once)),
            settings=settings,
        )
    )
    istioctl.chmod(0o755)
    release = directory / "istio"
    release.mkdir()
    (release / "samples").symlink_to(istio().samples)
    return {
        "KUBECONFIG": str(access),
        "ISTIO": str(release),
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
