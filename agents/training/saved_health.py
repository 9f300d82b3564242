"""What a `HealthMonitor` remembers, to be saved: a resumed run warns as one that was not interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from agents.files import JsonObject, check_types
from agents.training.health import HealthMonitor, probe_weights
from agents.training.optimizer_state import take_tensor

TYPES = {
    "warned": list,
    "start": list,
    "updates": list,
    "evaluations": list,
    "ends": list,
    "updates_since_probe": int,
    "probed": bool,
}


def health_state(monitor: HealthMonitor) -> tuple[JsonObject, dict[str, Tensor]]:
    """Returns a JSON object, and the weights `probe.INDEX` with which later ones are compared."""
    state = {
        "warned": sorted(monitor.warned),
        "start": monitor.context.start,
        "updates": list(monitor.updates),
        "evaluations": list(monitor.evaluations),
        "ends": monitor.ends,
        "updates_since_probe": monitor.updates_since_probe,
        "probed": monitor.probe is not None,
    }
    return state, {f"probe.{index}": before for index, (_, before) in enumerate(monitor.probe or [])}


def restore_health(agent: Any, state: JsonObject, tensors: dict[str, Tensor], path: Path) -> None:
    """Restores an agent's monitor from `health_state`.

    Args:
        agent: has the monitor in `health`.
        state: the JSON object.
        tensors: the tensors of a file; those of the monitor are removed.
        path: the folder of the files, for error messages.

    Raises:
        DamagedFile: it is not what `health_state` returns.
    """
    where = path / "agent.json: health"
    state = {"ends": [], **state}  # the first agents of format 3 did not save it: it is measured again
    check_types(where, state, TYPES)
    for name in ("start", "updates", "evaluations"):
        for row in state[name]:
            check_types(where, {name: row}, {name: dict})
            check_types(where, row, dict.fromkeys(row, float))
    for name in state["warned"]:
        check_types(where, {"warned": name}, {"warned": str})
    for value in state["ends"]:
        check_types(where, {"ends": value}, {"ends": float | None})
    monitor = agent.health
    monitor.warned, monitor.context.start = set(state["warned"]), state["start"]
    monitor.updates.extend(state["updates"])
    monitor.evaluations.extend(state["evaluations"])
    monitor.ends = state["ends"][:1]
    monitor.updates_since_probe = state["updates_since_probe"]
    monitor.probe = [] if state["probed"] else None
    saved = sum(name.startswith("probe.") for name in tensors)
    weights = probe_weights(agent)
    if saved == len(weights):
        names = [f"probe.{index}" for index in range(saved)]
        file = path / "training_state.safetensors"
        found = [take_tensor(tensors, name, each.shape, file) for name, each in zip(names, weights, strict=True)]
        monitor.probe = [(each, before.to(each.device)) for each, before in zip(weights, found, strict=True)]
    for index in range(saved):  # of a training that is sharded now, and was not before
        tensors.pop(f"probe.{index}", None)
