"""Shared fixtures of the experiments' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.trial import initial_policy
from tests.helpers.commands import tiny


@pytest.fixture(scope="session")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the initial policy of the tiny task."""
    folder = tmp_path_factory.mktemp("initial")
    initial_policy(tiny(), tiny().make_env(), folder)
    return folder
