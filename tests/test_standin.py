"""The stand-in device of tests/standin, which replaces functions of torch, stays in the process of `make standin`."""

from __future__ import annotations

import re

import torch

from tests.helpers.paths import ROOT
from tests.helpers.standin import is_supported


def test_no_other_test_has_the_device() -> None:
    """Though its tests are collected, and skipped, in the same run."""
    assert torch.Generator is torch._C.Generator and torch.Tensor.__setitem__ is torch._C.TensorBase.__setitem__
    assert torch._C._get_privateuse1_backend_name() == "privateuseone" and not hasattr(torch, "standin")
    assert is_supported() or torch.__version__ < "2.13"


def test_the_packages_do_not_know_it() -> None:
    """They treat it as any device; the benchmark that counts on it is of a checkout. Control: it and the tests do."""
    folders = ("textenv", "agents", "experiments", "tests/standin")
    files = [path for name in folders for path in (ROOT / name).rglob("*.py")]
    named = [path for path in files if re.search(r"\bstandin\b", path.read_text(encoding="utf-8"))]
    assert {path.parent for path in named} == {ROOT / "experiments" / "bench", ROOT / "tests" / "standin"}
