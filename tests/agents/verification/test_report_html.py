"""The report of `verify` in a notebook: what `str` has, without computing what takes seconds."""

from __future__ import annotations

import gymnasium as gym
import pytest

from agents import GRPO
from agents.verification import agent_loss, verify
from tests.helpers.html import Page


def test_it_has_the_numbers_of_the_report() -> None:
    """One row a policy, then the findings; other samplers and the fixed point once they are known."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=2, num_prompts=1)
    report = verify(agent_loss(GRPO), env, num_generations=2)
    page = Page(report._repr_html_())
    rows = {row[0]: row[1:] for row in page.rows}
    for name, each in report.by_policy.items():
        assert [float(rows[name][i]) for i in (0, 2, 3)] == pytest.approx(
            [each.bias, each.cosine, each.noise], rel=1e-3
        )
    assert rows["unbiased"] == [report.describe_bias()] and rows["worst"][4] == report.zero
    assert {f"{name}: {rows[name][0]}" for name in report.invariances} == set(map(str, report.invariances.values()))
    assert "off_policy" not in vars(report) and "fixed_point" not in vars(report)
    assert page.text.endswith("not computed yet, read or print to do so: .off_policy, .fixed_point")

    lines = str(report).splitlines()
    page = Page(report._repr_html_())
    rows = {row[0]: row[1:] for row in page.rows}
    assert set(report.off_policy) <= set(rows) and "not computed" not in page.text
    assert f"fixed point: {rows['fixed point'][0]}" in lines
