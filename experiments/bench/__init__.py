"""Speed, measured side by side: ours, the peers, and a tight loop that does the least that must be done."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.bench.run import BenchConfig, bench

__all__ = ["BenchConfig", "bench"]


def __getattr__(name: str) -> Any:
    """Imports the command on first use: the processes of the peers have none of the packages that it needs."""
    if name in __all__:
        from experiments.bench import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
