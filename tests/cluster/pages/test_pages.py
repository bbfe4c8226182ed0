"""Is every command of the documentation run by a test? Reads the tests, and runs nothing."""

import pytest

from cluster.walk import ELSEWHERE, PAGES, find, of_page, runs
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


def test_a_command_that_is_in_no_page() -> None:
    with pytest.raises(LookupError, match="0 commands"):
        find("README.md", "kubectl -n shop apply -k envoyfilter/no-such-form")


def test_a_part_of_several_commands() -> None:
    with pytest.raises(LookupError, match="commands with 'kubectl'"):
        find("README.md", "kubectl")
