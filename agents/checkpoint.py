"""Saving and loading agents: the policy as a Hugging Face checkpoint, and the state that resuming needs.

agent.json              format_version, the agent's class, settings, counts and beta
training_state.pt       Adam's moments, master weights, random generators
policy.json, ...        see `TransformerPolicy.save_pretrained`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from agents.format_version import FORMAT_VERSION, read_saved
from agents.policy import ADAPTER
from agents.training import gather_moments, gather_objects, rank, shard_moments, world_size


def save_agent(agent: Any, folder: Path) -> None:
    """Writes an `Agent` to a folder. Every rank calls it; rank 0 writes."""
    training_state = {
        "optimizer": gather_moments(agent.optimizer.state_dict()),
        "master_weights": agent.master_weights.state(),
        "generators": gather_objects(agent.generator.get_state()),
        "generator_device": agent.generator.device.type,
    }
    if rank() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    agent.policy.save_pretrained(folder)
    if agent.mdp is not None and hasattr(tokenizer := agent.mdp.tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
    content = {
        "format_version": FORMAT_VERSION,
        "agent": type(agent).__name__,
        "settings": {name: getattr(agent, name) for name in agent.hyperparameters()},
        "num_timesteps": agent.num_timesteps,
        "num_updates": agent.num_updates,
        "kl_coef": agent.kl_coef,
    }
    (folder / "agent.json").write_text(json.dumps(content, indent=2) + "\n")
    torch.save(training_state, folder / "training_state.pt")


def read_agent(folder: Path, name: str) -> dict[str, Any]:
    """Returns the content of `agent.json`.

    Args:
        folder: the folder given to `save_agent`.
        name: the expected class of the agent.

    Raises:
        ValueError: the folder holds no agent, one of another class, or one of another format.
    """
    path = folder / "agent.json"
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} holds no saved agent (no agent.json); pass the folder given to save().")
    saved = read_saved(path)
    if "agent" not in saved:
        raise ValueError(f"{path} must name its agent: it was saved by another library's agent, not by {name}.")
    if saved["agent"] != name:
        raise ValueError(f"{str(folder)!r} holds the agent {saved['agent']}, not {name}; use {saved['agent']}.load().")
    return saved


def restore_training_state(agent: Any, folder: Path, saved: dict[str, Any], generator: bool = True) -> None:
    """Restores optimizer, master weights, generator, counts and beta.

    Args:
        agent: a new agent with the saved policy and settings.
        folder: the folder given to `save_agent`.
        saved: the content of `agent.json`, from `read_agent`.
        generator: False keeps the agent's own generator.
    """
    state = torch.load(folder / "training_state.pt", map_location="cpu", weights_only=True)
    # An agent whose adapter was merged can only predict: the saved optimizer state belongs to other parameters.
    if agent.policy.has_adapter == (folder / ADAPTER).is_dir():
        agent.optimizer.load_state_dict(shard_moments(state["optimizer"], agent.optimizer))
        agent.master_weights.load_state(state["master_weights"])
    for group, new in zip(agent.optimizer.param_groups, agent.parameter_groups(), strict=True):
        group["lr"] = new["lr"]  # `load` may override the saved learning rates
    same_device = agent.generator.device.type == state["generator_device"]  # a state fits generators of one device type
    if same_device and generator:
        if len(state["generators"]) == world_size():
            agent.generator.set_state(state["generators"][rank()])
        else:  # the world size has changed: each rank gets a new stream of random numbers
            agent.generator.manual_seed(agent.generator.initial_seed() + saved["num_updates"])
    agent.num_timesteps, agent.num_updates = saved["num_timesteps"], saved["num_updates"]
    if agent.kl_target is not None and saved.get("kl_coef") is not None:
        agent.kl_coef = saved["kl_coef"]
