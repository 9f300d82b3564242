"""Shared fixtures of the experiments' tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the initial policy of the tiny task."""
    # imported here: the environments that test Tianshou and RLlib have no transformers
    from experiments.trial import initial_policy
    from tests.helpers.commands import tiny

    folder = tmp_path_factory.mktemp("initial")
    initial_policy(tiny(), tiny().make_env(), folder)
    return folder
