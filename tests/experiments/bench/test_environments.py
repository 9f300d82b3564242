"""The benchmark of stepping: every environment has a rate, and the mask takes no memory per row."""

from __future__ import annotations

from experiments.bench.environments import environments


def test_the_benchmark_of_environments() -> None:
    """A short run: every case has a rate, the mask is one array."""
    results = environments(seconds=0.5)
    rates = results["steps_per_second"]
    assert {"numpy loop", "CartPoleVectorEnv", "TextVectorEnv", "gym.make"} <= set(rates)
    assert all(rate > 0 for case in rates.values() for rate in case.values())
    assert set(rates["TextVectorEnv"]) == {1, 64, 1024}
    assert results["mask"]["one_read_only_array"] and results["mask"]["bytes"] == 50_000
    assert results["prefix"].keys() == {"first", "last"}
