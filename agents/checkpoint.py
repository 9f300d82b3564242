"""Saving and loading agents: the policy as a Hugging Face checkpoint, and the state that resuming needs.

agent.json                    format_version, the agent's class, settings, counts, beta, what the warnings remember
training_state.safetensors    optimizer, master weights, random generators, a replay (`agents.training_state`)
policy.json, ...              see `agents.policy.saved_policy`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from agents.files import (
    DamagedFile,
    JsonObject,
    check_names,
    check_types,
    read_tensors,
    write_folder,
    write_json,
    write_tensors,
)
from agents.format_version import FORMAT_VERSION, find_saved, read_saved
from agents.ignored_settings import merge_settings
from agents.policy import STALE, TransformerPolicy, write_policy
from agents.sampling import is_external
from agents.training import drop_optimizer_tensors, health_state, rank, restore_health
from agents.training_state import collect_training_state, restore_generator, restore_optimizer, restore_own_state
from textenv import EnvLike, get_mdp

AGENT = "agent.json"
TRAINING_STATE = "training_state.safetensors"
# files of another tokenizer that transformers would read beside the saved one's
OTHER_TOKENIZER = (
    *("tokenizer*.json", "tokenizer.model", "added_tokens.json", "special_tokens_map.json"),
    *("vocab.*", "merges.txt", "spiece.model", "sentencepiece*.model"),
    *("chat_template.*", "additional_chat_templates/*"),
)
# Settings whose text may name code: the optimizer's does, and in older files that of a function as learning rate. Other
# functions are saved as {"code": "module:name"}.
NAMES_OF_CODE = ("learning_rate", "optimizer")
TYPES = {
    "settings": dict,
    "num_timesteps": int,
    "num_updates": int,
    "kl_coef": float | None,
    "generator_device": str,
    "adapter": bool,
    "bad_steps_in_a_row": int,
    "health": dict,
}


def save_agent(agent: Any, folder: Path, keep: int = 1, attach: JsonObject | None = None) -> None:
    """Writes an `Agent` to a folder, see `write_folder`. Every rank calls it; rank 0 writes."""
    tensors = collect_training_state(agent)
    if rank() > 0:
        return
    health, probe = health_state(agent.health)
    content = {
        "format_version": FORMAT_VERSION,
        "agent": type(agent).__name__,
        "settings": {name: _named(getattr(agent, name)) for name in agent.hyperparameters()},
        "num_timesteps": agent.num_timesteps,
        "num_updates": agent.num_updates,
        "kl_coef": agent.kl_coef,
        "generator_device": agent.generator.device.type,
        "adapter": agent.policy.has_adapter,
        "bad_steps_in_a_row": agent.step_guard.in_a_row,
        "health": health,
    }

    save_tokenizer = None if agent.mdp is None else getattr(agent.mdp.tokenizer, "save_pretrained", None)

    def fill(new: Path) -> None:
        write_policy(agent.policy, new)
        if save_tokenizer is not None:
            save_tokenizer(new)
        write_json(new / AGENT, content)
        write_tensors(new / TRAINING_STATE, tensors | probe)

    write_folder(folder, fill, keep, attach, STALE if save_tokenizer is None else STALE + OTHER_TOKENIZER)


def load_agent(
    kind: Any,
    folder: Path,
    env: EnvLike | None,
    device: str,
    wrap: Callable[[TransformerPolicy], torch.nn.Module] | None,
    trust_remote_code: bool,
    settings: Mapping[str, object],
) -> Any:
    """Loads an agent of a class, see `Agent.load`."""
    path, saved = read_agent_file(folder, kind.__name__, kind.hyperparameters())
    check_code(path / AGENT, saved["settings"], settings)
    reference = None if env is None or is_external(env) else get_mdp(env).reference
    policy = TransformerPolicy.from_pretrained(path, reference=reference, trust_remote_code=trust_remote_code)
    merged = merge_settings(kind, saved["settings"], settings, kind.unused_settings)
    agent = kind(policy.to(device), env, **merged)
    if wrap is not None:
        agent.distribute(wrap)
    restore_training_state(agent, path, saved, generator="seed" not in settings)
    return agent


def _named(setting: object) -> Any:
    """A setting as a JSON value: of a function its name, {"code": "module:name"}."""
    if not callable(setting):
        return setting
    named = setting if hasattr(setting, "__qualname__") else type(setting)
    return {"code": f"{named.__module__}:{named.__qualname__}"}


def check_code(path: Path, saved: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Raises a ValueError if saved settings name code that is not given again: what is read from a folder runs none."""
    for name, value in saved.items():
        if isinstance(value, dict) and value.keys() == {"code"}:
            value = value["code"]
        elif name not in NAMES_OF_CODE or not isinstance(value, str) or ":" not in value:
            continue
        if name not in given:
            raise ValueError(
                f"{path} names {value!r:.100}, which would import and run code. If you trust it, give the setting too: "
                f"load(..., {name}=)."
            )


def read_agent_file(folder: Path, name: str, settings: list[str]) -> tuple[Path, JsonObject]:
    """Returns the newest whole version of a folder that `save_agent` wrote, and the content of its `agent.json`.

    Args:
        folder: the folder given to `save_agent`.
        name: the expected class of the agent.
        settings: the names of its settings.

    Raises:
        DamagedFile: a file is missing, was changed, or holds something else than an agent's.
        ValueError: the folder holds no agent, one of another class, or one of another format.
    """
    found = find_saved(folder, AGENT)
    if found is None:
        raise ValueError(f"{str(folder)!r} holds no saved agent (no {AGENT}); pass the folder given to save().")
    path = found / AGENT
    saved = read_saved(path)
    if not isinstance(saved.get("agent"), str):
        raise ValueError(f"{path} must name its agent: it was saved by another library's agent, not by {name}.")
    if saved["agent"] != name:
        raise ValueError(f"{str(folder)!r} holds the agent {saved['agent']}, not {name}; use {saved['agent']}.load().")
    check_types(path, saved, TYPES)
    check_names(path, "settings", saved["settings"], settings)
    return found, saved


def restore_training_state(agent: Any, folder: Path, saved: JsonObject, generator: bool = True) -> None:
    """Restores optimizer, master weights, generator, counts, beta, and what the warnings remember.

    Args:
        agent: a new agent with the saved policy and settings.
        folder: the folder of `read_agent_file`.
        saved: the content of `agent.json`, from `read_agent_file`.
        generator: False keeps the agent's own generator.

    Raises:
        DamagedFile: the saved tensors do not fit the policy.
    """
    path = folder / TRAINING_STATE
    tensors = read_tensors(path)
    states = tensors.pop("generators", None)
    if states is None or states.ndim != 2:
        raise DamagedFile(f"{path} must hold generators, uint8 [ranks, bytes].")
    # An agent whose adapter was merged can only predict: the saved optimizer state belongs to other parameters.
    if agent.policy.has_adapter == saved["adapter"]:
        restore_health(agent, saved["health"], tensors, folder)
        if agent.optimizer != saved["settings"].get("optimizer", "adam"):  # the first ones of format 3 had no other
            drop_optimizer_tensors(tensors)
        restore_own_state(agent, tensors, len(states), path)
        restore_optimizer(agent, tensors, path)
    agent.step_guard.in_a_row = saved["bad_steps_in_a_row"]
    if agent.generator.device.type == saved["generator_device"] and generator:  # a state fits one type of device
        restore_generator(agent, states, saved["num_updates"], path)
    agent.num_timesteps, agent.num_updates = saved["num_timesteps"], saved["num_updates"]
    if agent.kl_target is not None and saved["kl_coef"] is not None:
        agent.kl_coef = saved["kl_coef"]
