"""Saved agents and policies: whole or as they were before; what was damaged or made by hand is refused by name."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from agents import PPO, TransformerPolicy
from agents.files import DamagedFile, StorageError, remove
from tests.helpers.agents import FOREVER, agent_of, stop_after, task, weights
from tests.helpers.policies import random_policy
from tests.helpers.storage import DAMAGES, Killed, content, operations_fail, rewrite, seal


def trained(updates: int = 1) -> Any:
    """A PPO agent after some updates."""
    return agent_of(PPO).learn(FOREVER, callback=stop_after(updates))


def state(agent: Any) -> tuple[torch.Tensor, int, list[torch.Tensor]]:
    """What an agent goes on with."""
    moments = agent.optimization.optimizer.state_dict()["state"]
    return weights(agent), agent.num_updates, [each["exp_avg"] for each in moments.values()]


def same(one: Any, other: Any) -> bool:
    """Whether two agents go on alike."""
    (left, left_count, left_moments), (right, right_count, right_moments) = state(one), state(other)
    moments = all(map(torch.equal, left_moments, right_moments)) and len(left_moments) == len(right_moments)
    return left.equal(right) and left_count == right_count and moments


@pytest.mark.parametrize("kill", [False, True], ids=["full disk", "killed"])
@pytest.mark.parametrize("keep", [1, 2])
def test_an_agent_is_as_it_was_or_whole(keep: int, kill: bool, tmp_path: Path) -> None:
    """A save over an earlier one, stopped at each operation: `load` returns one of the two, never a mixture."""
    old, new = trained(1), trained(2)
    old.save(tmp_path / "counted", keep)
    with operations_fail() as log:
        new.save(tmp_path / "counted", keep)
    found = set()
    for at in range(0, len(log), 3 if keep == 1 else 1):
        folder = tmp_path / str(at)
        old.save(folder, keep)
        with operations_fail(at, kill), pytest.raises(Killed if kill else StorageError):
            new.save(folder, keep)
        loaded = PPO.load(folder, env=task())
        assert same(loaded, old) or same(loaded, new), log[at]
        found.add(loaded.num_updates)
    assert found == {1, 2}


@pytest.fixture(scope="module")
def saved_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files that `save` writes."""
    folder = tmp_path_factory.mktemp("names")
    agent_of(PPO).save(folder)
    return list(content(folder))


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_named(damage: str, saved_names: list[str], tmp_path: Path) -> None:
    """Each file of a saved agent. An earlier version is loaded in its place, with a warning; else it is refused."""
    assert len(saved_names) > 6
    old, new = trained(1), trained(2)
    for name in saved_names:
        folder = tmp_path / name
        old.save(folder, keep=2)
        new.save(folder, keep=2)
        DAMAGES[damage](folder / name)
        with pytest.warns(UserWarning, match="is read instead, which is older") as caught:
            assert same(PPO.load(folder, env=task()), old)
        assert str(folder / name) in str(caught[0].message)
        remove(tmp_path / f"{name}.1")
        for load in (PPO.load, TransformerPolicy.from_pretrained):
            with pytest.raises(DamagedFile) as error:
                load(folder)
            assert str(folder / name) in str(error.value)


def test_a_whole_agent_is_loaded_without_a_warning(tmp_path: Path) -> None:
    """Control."""
    new = trained(2)
    trained(1).save(tmp_path / "agent", keep=2)
    new.save(tmp_path / "agent", keep=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(PPO.load(tmp_path / "agent", env=task()), new)


def test_nothing_of_an_agent_stays_in_a_policy(tmp_path: Path) -> None:
    """A policy is saved over an agent: the folder holds no agent any more."""
    agent = trained()
    agent.save(tmp_path)
    agent.policy.save_pretrained(tmp_path)
    assert "training_state.safetensors" not in content(tmp_path)
    with pytest.raises(ValueError, match="no saved agent"):
        PPO.load(tmp_path)
    TransformerPolicy.from_pretrained(tmp_path)


def test_a_link_that_the_user_names_is_followed(tmp_path: Path) -> None:
    """The folder that it leads to is written, and the link stays."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "agent").symlink_to(tmp_path / "disk")
    trained().save(tmp_path / "agent")
    trained(2).save(tmp_path / "agent")
    assert (tmp_path / "agent").is_symlink() and (tmp_path / "disk" / "agent.json").is_file()
    assert PPO.load(tmp_path / "agent", env=task()).num_updates == 2


def test_files_of_the_user_stay_and_other_weights_go(tmp_path: Path) -> None:
    """transformers would load weights in other files of known names, or an adapter beside the model."""
    stale = ("model-00001-of-00002.safetensors", "pytorch_model.bin", "adapter_config.json")
    for name in (*stale, "notes.txt", "reward.safetensors"):
        (tmp_path / name).write_text("theirs")
    policy = random_policy(task(), scale=0.1).float()
    policy.save_pretrained(tmp_path)
    assert {"notes.txt", "reward.safetensors"} <= set(content(tmp_path)) and not set(stale) & set(content(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(map(torch.equal, model.state_dict().values(), policy.model.state_dict().values()))


def test_a_plain_hugging_face_folder_loads(tmp_path: Path) -> None:
    """Without `policy.json` and manifest: a causal language model, and a new value head."""
    policy = random_policy(task(), scale=0.1).float()
    policy.model.save_pretrained(tmp_path)
    loaded = TransformerPolicy.from_pretrained(tmp_path)
    assert loaded.temperature == 1.0 and not loaded.value_head.weight.any()
    assert all(map(torch.equal, loaded.model.state_dict().values(), policy.model.state_dict().values()))


def test_no_pickle_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor read: `torch.save` and `torch.load` are not called."""
    for name in ("save", "load"):
        monkeypatch.setattr(torch, name, None)
    trained().save(tmp_path)
    assert PPO.load(tmp_path, env=task()).num_updates == 1
    assert {Path(name).suffix for name in content(tmp_path)} <= {".json", ".safetensors"}


HANDMADE: list[tuple[str, dict[str, Any], str]] = [
    ("agent.json", {"num_updates": -1}, "num_updates must be an integer of at least 0, got -1"),
    ("agent.json", {"num_timesteps": 1.5}, "num_timesteps must be an integer"),
    ("agent.json", {"num_timesteps": None}, "num_timesteps must be an integer"),
    ("agent.json", {"agent": 3}, "must name its agent"),
    ("agent.json", {"agent": "RLOO"}, "holds the agent RLOO, not PPO"),
    ("agent.json", {"settings": []}, "settings must be an object"),
    ("agent.json", {"settings": {"import": "os"}}, "settings must be among .*, got 'import'"),
    ("agent.json", {"settings": {"policy": 3}}, "settings must be among .*, got 'policy'"),
    ("agent.json", {"settings": {"learning_rate": "x"}}, "learning_rate must be a number, got 'x'"),
    ("agent.json", {"settings": {"n_episodes": -4}}, "n_episodes must be in"),
    ("agent.json", {"settings": {"n_episodes": [1]}}, "n_episodes must be an integer"),
    ("agent.json", {"settings": {"kl_estimator": {}}}, "kl_estimator must be one of"),
    ("agent.json", {"settings": {"gamma": 1e400}}, "gamma must be a number, got None"),
    ("agent.json", {"kl_coef": "x"}, "kl_coef must be a finite number or null"),
    ("agent.json", {"generator_device": None}, "generator_device must be a string"),
    ("agent.json", {"adapter": 0}, "adapter must be true or false"),
    ("agent.json", {"health": 3}, "health must be an object"),
    ("agent.json", {"health": {"warned": 3}}, "health: warned must be a list"),
    ("policy.json", {"vocab_size": "x"}, "vocab_size must be an integer of at least 0 or null"),
    ("policy.json", {"vocab_size": 10**6}, "vocab_size must be at most the model's"),
    ("policy.json", {"temperature": None}, "temperature must be a finite number"),
    ("policy.json", {"temperature": 0}, "temperature must be a finite number > 0"),
    ("policy.json", {"separate_critic": "no"}, "separate_critic must be true or false"),
    ("policy.json", {"separate_critic": True}, r"value_head\.safetensors must hold critic\."),
    ("policy.json", {"dtype": "complex64"}, "dtype must be one of float32, bfloat16, got 'complex64'"),
    ("policy.json", {"dtype": []}, "dtype must be a string"),
    ("policy.json", {"adapter": 1}, "adapter must be true or false"),
    ("config.json", {"model_type": "bert"}, "is not a (complete )?causal language model"),
    ("config.json", {"model_type": []}, "does not hold a policy|cannot be loaded"),
    ("config.json", {"n_layer": "x"}, "does not hold a policy|cannot be loaded"),
    ("config.json", {"n_layer": 3}, "is not a complete causal language model"),
    ("config.json", {"vocab_size": 7}, "does not hold a policy|cannot be loaded|complete|shapes of its weights"),
]


@pytest.mark.parametrize(("name", "change", "message"), HANDMADE)
def test_what_was_made_by_hand_is_refused(name: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Values of another type or range, in files whose checksums are right: an error of ours, by name and value."""
    trained().save(tmp_path)
    if name == "config.json":
        path = tmp_path / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        seal(tmp_path)
    else:
        rewrite(tmp_path, name, lambda saved: saved.update(change))
    with pytest.raises(ValueError, match=message):
        PPO.load(tmp_path, env=task())


def drop(tensors: dict[str, torch.Tensor], ending: str) -> dict[str, torch.Tensor]:
    """The tensors without the first whose name ends so."""
    name = next(each for each in sorted(tensors) if each.endswith(ending))
    return {each: tensor for each, tensor in tensors.items() if each != name}


TENSORS: list[tuple[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = [
    ("training_state", lambda t: drop(t, "exp_avg"), r"must hold optimizer\..*exp_avg, a float tensor"),
    ("training_state", lambda t: drop(t, "step"), r"must hold optimizer\..*step"),
    ("training_state", lambda t: drop(t, "generators"), "must hold generators, uint8"),
    ("training_state", lambda t: t | {"generators": torch.zeros(3)}, "must hold generators, uint8"),
    ("training_state", lambda t: t | {"generators": torch.zeros(1, 3).byte()}, "generators must be states of torch"),
    ("training_state", lambda t: t | {"generators": torch.zeros(1, 5056)}, "generators must be states of torch"),
    ("training_state", lambda t: t | {"optimizer.x.step": torch.zeros(())}, r"holds 'optimizer\.x\.step', which no"),
    ("training_state", lambda t: {n: x[:1] if x.ndim > 1 else x for n, x in t.items()}, "a float tensor .*, got"),
    ("value_head", lambda t: {}, r"value_head\.safetensors must hold value_head\.bias"),
    ("value_head", lambda t: {n: x[None] for n, x in t.items()}, "does not hold a policy"),
    ("model", lambda t: drop(t, "weight"), "is not a complete causal language model"),
]


@pytest.mark.parametrize(("name", "change", "message"), TENSORS)
def test_tensors_that_do_not_fit_are_refused(name: str, change: Any, message: str, tmp_path: Path) -> None:
    """Too many, too few, or of other shapes, in files whose checksums are right."""
    trained().save(tmp_path)
    path = tmp_path / f"{name}.safetensors"
    changed = change(load_file(path))
    save_file({n: tensor.contiguous() for n, tensor in changed.items()}, path, {"format": "pt"})
    seal(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        PPO.load(tmp_path, env=task())
    assert str(path if name == "training_state" else tmp_path) in str(error.value)


@pytest.mark.parametrize("name", ["training_state", "value_head", "model"])
def test_a_file_that_holds_no_tensors_is_refused(name: str, tmp_path: Path) -> None:
    """Any bytes, with the right checksum in the manifest."""
    trained().save(tmp_path)
    for bytes_ in (b"", b"no tensors", os.urandom(100), b"\xff" * 16):
        (tmp_path / f"{name}.safetensors").write_bytes(bytes_)
        seal(tmp_path)
        with pytest.raises(ValueError):
            PPO.load(tmp_path, env=task())


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", f"{'y' * 260}/a"])
def test_names_that_no_folder_can_have(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of storage, of an agent and of a policy."""
    monkeypatch.chdir(tmp_path)
    agent = agent_of(PPO)
    for save in (agent.save, agent.policy.save_pretrained):
        with pytest.raises(StorageError, match="Could not write"):
            save(name)
    assert list(tmp_path.iterdir()) == []
