"""Optimizers by name, their saved state, and the step sizes that suit what is trained."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import agents.training.optimizers as optimizers
from agents import PPO, REINFORCE
from agents.files import DamagedFile, read_json, read_manifest, write_folder, write_json
from agents.training import default_learning_rate
from agents.training_state import collect_training_state, restore_optimizer
from tests.helpers.agents import agent_of, stop_after, task, weights
from tests.helpers.models import language_model

HELPER = "tests.helpers.optimizers"
NAMES = [
    *("adam", "adagrad", "torch.optim:AdamW", "torch.optim:RMSprop", "torch.optim:Adafactor"),
    *(f"{HELPER}:momentum", f"{HELPER}:Harmonic"),
]
TOTAL = 250


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_any_optimizer_resumes_bit_identically(tmp_path: Path, name: str, schedule: str) -> None:
    """A training that was saved and loaded halfway equals one without, schedule and warm-up too."""
    settings: dict[str, Any] = {"optimizer": name, "lr_schedule": schedule, "learning_rate": 3e-3, "lr_warmup": 3}
    whole = agent_of(PPO, n_epochs=2, **settings).learn(TOTAL)
    assert whole.num_updates >= 5
    halfway = agent_of(PPO, n_epochs=2, **settings).learn(TOTAL, callback=stop_after(2))
    halfway.save(tmp_path)
    resumed = PPO.load(tmp_path, env=task(), optimizer=name)
    remaining = TOTAL - resumed.num_timesteps
    resumed.learn(remaining, reset_num_timesteps=False)
    assert weights(resumed).equal(weights(whole)) and resumed.num_updates == whole.num_updates
    if name != f"{HELPER}:Harmonic":  # control: without its state
        forgetful = PPO.load(tmp_path, env=task(), optimizer=name)
        forgetful.optimization.optimizer.state.clear()
        if name == "adagrad":  # its state is made at once
            forgetful = PPO.load(tmp_path, env=task(), optimizer="torch.optim:Adagrad")
        forgetful.learn(remaining, reset_num_timesteps=False)
        assert not weights(forgetful).equal(weights(whole))


def test_a_tensor_that_is_missing_from_the_state_is_noticed(tmp_path: Path) -> None:
    """Also of an optimizer that keeps other tensors of a vector than of a matrix, and of a parameter's whole state."""
    agent = agent_of(REINFORCE, optimizer="torch.optim:Adafactor").learn(1)
    path, tensors = tmp_path / "state", collect_training_state(agent)

    def restore(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        remaining = change(dict(tensors))
        del remaining["generators"]
        restore_optimizer(agent_of(REINFORCE, optimizer="torch.optim:Adafactor"), remaining, path)

    restore(lambda t: t)  # control
    restore(lambda t: {name: x for name, x in t.items() if name != "optimizer.keys"})  # as older files
    row = "optimizer.model.transformer.wte.weight.row_var"
    with pytest.raises(DamagedFile, match=f"must hold {re.escape(row)}"):
        restore(lambda t: {name: x for name, x in t.items() if name != row})
    with pytest.raises(DamagedFile, match=r"must hold optimizer\.model\.transformer\.wpe\.weight\."):
        restore(lambda t: {name: x for name, x in t.items() if "wpe" not in name})
    with pytest.raises(DamagedFile, match=r"must hold optimizer\.keys, names as bytes, got torch\.float32 \[\]"):
        restore(lambda t: t | {"optimizer.keys": torch.ones(())})
    with pytest.raises(DamagedFile, match=r"must hold optimizer\.keys, names as bytes, got torch\.uint8 \[1\]"):
        restore(lambda t: t | {"optimizer.keys": torch.tensor([255], dtype=torch.uint8)})


def test_a_folder_names_no_code_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer module:object, and a function as learning rate, must be given again; nothing is imported before."""
    agent_of(REINFORCE, optimizer=f"{HELPER}:momentum", learning_rate=rising).learn(1).save(tmp_path)
    imported: list[str] = []
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name, *more: (imported.append(name), real(name, *more))[1])
    with pytest.raises(ValueError, match=r"names '.*:rising', which would import and run code.*learning_rate="):
        REINFORCE.load(tmp_path, optimizer=f"{HELPER}:momentum")
    with pytest.raises(ValueError, match=r"names '.*:momentum', which would import and run code.*optimizer="):
        REINFORCE.load(tmp_path, learning_rate=rising)
    assert HELPER not in imported
    loaded = REINFORCE.load(tmp_path, env=task(), optimizer=f"{HELPER}:momentum", learning_rate=rising)
    assert HELPER in imported and loaded.learning_rate is rising


def test_a_file_that_names_a_function_in_the_older_way_names_no_code_either(tmp_path: Path) -> None:
    """As text, without {"code": ...}; it loads where the function is given again."""
    agent_of(REINFORCE, learning_rate=rising).learn(1).save(tmp_path)
    assert read_json(tmp_path / "agent.json")["settings"]["learning_rate"] == {"code": f"{__name__}:rising"}
    change_settings(tmp_path, lambda settings: settings | {"learning_rate": f"{__name__}:rising"})
    with pytest.raises(ValueError, match=r"names '.*:rising', which would import and run code.*learning_rate="):
        REINFORCE.load(tmp_path)
    assert REINFORCE.load(tmp_path, env=task(), learning_rate=rising).learning_rate is rising


def change_settings(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replaces the settings in an agent's folder, with the checksums."""
    content = read_json(folder / "agent.json")
    content["settings"] = change(content["settings"])
    kept = {path: path.read_bytes() for path in folder.iterdir() if path.name in read_manifest(folder)["files"]}

    def fill(new: Path) -> None:
        for path, data in kept.items():
            (new / path.name).write_bytes(data)
        write_json(new / "agent.json", content)

    write_folder(folder, fill)


def rising(share: float) -> float:
    """A schedule."""
    return 1e-3 * (1 + share)


def test_with_another_optimizer_its_state_begins_anew(tmp_path: Path) -> None:
    """Control: with the same one it is that of the folder."""
    agent_of(REINFORCE).learn(1).save(tmp_path)
    assert len(REINFORCE.load(tmp_path, env=task()).optimization.optimizer.state) > 0
    other = REINFORCE.load(tmp_path, env=task(), optimizer="adagrad")
    assert all(not state["sum"].any() for state in other.optimization.optimizer.state.values())
    other.learn(1)


def test_a_folder_from_before_these_settings_is_loaded(tmp_path: Path) -> None:
    """Without optimizer, schedule and warm-up: Adam with a constant step size, and its state."""
    agent = agent_of(REINFORCE).learn(1)
    agent.save(tmp_path)
    new = ("optimizer", "lr_schedule", "lr_warmup")
    change_settings(tmp_path, lambda settings: {name: value for name, value in settings.items() if name not in new})
    loaded = REINFORCE.load(tmp_path, env=task())
    assert (loaded.optimizer, loaded.lr_schedule, loaded.lr_warmup) == ("adam", "constant", 0)
    assert len(loaded.optimization.optimizer.state) == len(agent.optimization.optimizer.state) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of adam, adagrad, or module:object, got 'sgd'"),
        ({"optimizer": "no_such_module:x"}, "optimizer 'no_such_module:x' could not be imported"),
        ({"optimizer": f"{HELPER}:missing"}, "could not be imported"),
        ({"optimizer": "..:object"}, "optimizer '..:object' could not be imported: it must be module:object"),
        ({"optimizer": f"{HELPER}:NO_FUNCTION"}, "optimizer must be called with parameter groups"),
        ({"optimizer": "torch.optim:LBFGS"}, "which raises ValueError: LBFGS doesn't support per-parameter options"),
        ({"optimizer": "builtins:int"}, "from parameter groups, got 'builtins:int', which raises TypeError"),
        ({"optimizer": "sys:exit"}, "from parameter groups, got 'sys:exit', which raises SystemExit"),
        ({"optimizer": "builtins:list"}, "must make a torch.optim.Optimizer, got 'builtins:list', which makes list"),
        (
            {"optimizer": f"{HELPER}:nothing"},
            "must make a torch.optim.Optimizer, .*:nothing', which makes NoneType",
        ),
        ({"lr_schedule": "step"}, "lr_schedule must be one of constant, linear, cosine, got 'step'"),
        ({"lr_schedule": "linear", "learning_rate": rising}, "lr_schedule must be constant where learning_rate is a"),
        ({"learning_rate": lambda share: share}, r"learning_rate\(0\) must be a finite number > 0"),
        ({"learning_rate": lambda share: "x"}, r"learning_rate\(0\) must be a finite number > 0.*got 'x'"),
        ({"lr_warmup": -1}, "lr_warmup must be in"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    """With the rule and the value."""
    with pytest.raises(ValueError, match=message):
        agent_of(REINFORCE, **settings)


def test_a_schedule_must_be_finite() -> None:
    """Found when the share is reached."""
    with pytest.raises(ValueError, match=r"learning_rate\(0\.\d+\) must be a finite number >= 0, got -1.0"):
        agent_of(REINFORCE, learning_rate=lambda share: 1e-3 if share == 0 else -1.0).learn(TOTAL)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("InGroups", "k in its parameter groups"), ("InList", r"history \[1\.0\]"), ("Shared", "the state 'all'")],
)
def test_state_that_could_not_be_saved_is_refused_at_the_first_step(name: str, kept: str) -> None:
    """Rather than at the first checkpoint, or never. Control: the optimizers in NAMES, which are resumed."""
    with pytest.raises(ValueError, match=f"optimizer must keep its state per parameter.*; {name} keeps {kept}"):
        agent_of(REINFORCE, optimizer=f"{HELPER}:{name}").learn(1)


def test_the_default_step_size_follows_what_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model, a larger one, an adapter; a value that is given is kept, and the resolved one is the attribute."""
    agent = agent_of(REINFORCE)
    assert agent.learning_rate == default_learning_rate(False, False) == 1e-3
    size = sum(p.numel() for p in agent.policy.model.parameters())
    monkeypatch.setattr(optimizers, "SMALL", size)
    assert agent_of(REINFORCE).learning_rate == 1e-3
    monkeypatch.setattr(optimizers, "SMALL", size - 1)
    assert agent_of(REINFORCE).learning_rate == 1e-5 and agent_of(REINFORCE, learning_rate=0.5).learning_rate == 0.5
    monkeypatch.undo()
    env, policy = language_model()  # of fewer parameters, and yet no toy's
    assert REINFORCE(policy, env).learning_rate == default_learning_rate(True, False) == 1e-5
    assert default_learning_rate(True, True) == default_learning_rate(False, True) == 1e-4
