"""The programs that a user of the cluster has in the path."""

import os
import shlex
from pathlib import Path

from cluster.settings import HUB, ISTIO_TAG, binary
from istio.tools import CONTROL_PLANE, istio

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
_ISTIOCTL = """\
#!/bin/sh
if [ "$1" = install ]; then exec {program} "$@" {settings}; fi
exec {program} "$@"
"""


def install(directory: Path, access: Path) -> dict[str, str]:
    """The environment of a user: kubectl, istioctl, and a release of Istio."""
    tools = directory / "tools"
    tools.mkdir()
    (tools / "kubectl").symlink_to(binary("kubectl"))
    settings = shlex.join(
        word for name, value in _INSTALL.items() for word in ("--set", f"{name}={value}")
    )
    istioctl = tools / "istioctl"
    istioctl.write_text(_ISTIOCTL.format(program=istio().binary("istioctl"), settings=settings))
    istioctl.chmod(0o755)
    release = directory / "istio"
    release.mkdir()
    (release / "samples").symlink_to(istio().samples)
    return {
        "KUBECONFIG": str(access),
        "ISTIO": str(release),
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
