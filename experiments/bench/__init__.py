"""Speed and memory of the agents, of the peers, and of a tight loop that does the minimum, on the same work."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.bench.run import BenchConfig, bench

__all__ = ["BenchConfig", "bench"]


def __getattr__(name: str) -> Any:
    """Imports the command on first use: the environments of the peers lack the packages that it needs."""
    if name in __all__:
        from experiments.bench import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
