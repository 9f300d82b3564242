"""The default arguments of the tasks are those that their pages name."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

TASKS = ("toy", "taj_mahal", "reward_hacking", "sentiment")  # module and function


@pytest.mark.parametrize("name", TASKS)
def test_the_defaults_are_those_of_the_page(name: str) -> None:
    """Every number in the section Arguments."""
    module = importlib.import_module(f"textenv.tasks.{name}")
    page = re.search(r"\nArguments\n(.*?)\n\n", inspect.getdoc(module) or "", re.DOTALL)
    assert page is not None
    named = {key: float(value) for key, value in re.findall(r"(\w+)=([0-9.]*[0-9])", page[1])}
    parameters = inspect.signature(inspect.unwrap(getattr(module, name))).parameters
    assert "kl_coef" in named
    assert named == {key: parameters[key].default for key in named}


@pytest.mark.parametrize("name", ["toy", "taj_mahal", "reward_hacking"])
def test_a_task_without_arguments_has_the_defaults(name: str) -> None:
    """beta, which all of them have."""
    made = getattr(importlib.import_module(f"textenv.tasks.{name}"), name)()
    assert made.kl_coef == 0.1
