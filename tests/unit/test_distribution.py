"""What a module has opened is opened once, however many processes run the tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fails where another process of this run opened it, too."""
    base = tmp_path_factory.getbasetemp()
    of_all = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    (of_all / "opened").touch(exist_ok=False)


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize("_", range(8))
def test_tests_that_share_what_a_module_has_opened_run_in_one_process(_: int) -> None:
    """There are as many as would not all get into one by chance; the fixture fails in a second one."""
