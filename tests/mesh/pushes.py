"""Listeners that are pushed to a running Envoy."""

import os
from pathlib import Path

import yaml

from mesh.envoy import Config, Envoy
from mesh.steady import USERS, Pod, until


def listeners(running: Envoy, name: str) -> float:
    """A number of Envoy's about its listeners."""
    name = f"listener_manager.{name}"
    return running.stats(name)[name]


class Pushes:
    """Listeners that Envoy reads from a file, which is replaced by renaming."""

    def __init__(self, pod: Pod, directory: Path) -> None:
        self._pod = pod
        # A directory of its own: each rename into it makes Envoy read the file.
        self._directory = directory / "lds"
        self._directory.mkdir()
        self._path = self._directory / "lds.yaml"
        self._version = 0

    def bootstrap(self, config: Config) -> Config:
        """The same bootstrap, with its listeners in the file."""
        self._write(config)
        bootstrap = {**config, "static_resources": dict(config["static_resources"])}
        del bootstrap["static_resources"]["listeners"]
        bootstrap["dynamic_resources"] = {
            "lds_config": {
                "resource_api_version": "V3",
                "path_config_source": {
                    "path": str(self._path),
                    "watched_directory": {"path": str(self._directory)},
                },
            }
        }
        return bootstrap

    def _write(self, config: Config) -> None:
        self._version += 1
        listener = "type.googleapis.com/envoy.config.listener.v3.Listener"
        listeners = config["static_resources"]["listeners"]
        resources = [{"@type": listener, **each} for each in listeners]
        text = yaml.safe_dump({"version_info": str(self._version), "resources": resources})
        part = self._directory.with_name("lds.part")
        part.write_text(text)
        os.replace(part, self._path)

    async def push(self, running: Envoy, config: Config, outcome: str = "update_success") -> None:
        """Push, wait until Envoy has taken or refused it, and a few requests longer."""
        before = listeners(running, f"lds.{outcome}")
        self._write(config)
        await until(outcome, lambda: listeners(running, f"lds.{outcome}") > before)
        seen = self._pod.load.requests
        await until("more requests", lambda: self._pod.load.requests > seen + 4 * USERS)
