"""The tests of this folder run on the stand-in device, in a process of their own: `make standin`.

The device replaces functions of torch, which no other test must see. They are skipped unless nothing else runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.standin import install, is_supported

MARK = "standin"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests of this folder, and skips them where other tests run in the same process."""
    reason = None
    if config.option.markexpr != MARK:
        reason = "needs a process of its own: make standin"
    elif not is_supported():
        reason = "this torch has no Python backends"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(getattr(pytest.mark, MARK))
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def standin() -> None:
    """The device is installed once in a process."""
    install()
