"""No setting of an agent is ignored in silence: given alone it changes the training, or is refused."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from agents import GRPO, REINFORCE, PathConsistency, TrainingWarning
from agents.ignored_settings import merge_settings, only_with
from agents.sampling import sample
from tests.helpers.agents import KINDS, agent_of, every_kind, task, weights
from tests.helpers.policies import random_policy

# For each number, a value that shows in some updates.
NUMBERS: dict[str, Any] = {
    "learning_rate": 0.03, "n_episodes": 32, "num_generations": 2, "gamma": 0.5, "max_grad_norm": 1e-3, "seed": 1,
    "optimizer": "adagrad", "lr_warmup": 5, "kl_target": 0.1, "kl_horizon": 100, "sampler_cap": 1.1,
    "gae_lambda": 0.2, "vf_coef": 2.0, "vf_learning_rate": 0.1, "value_warmup": 1, "n_epochs": 3, "batch_size": 8,
    "clip_range": 1e-4, "clip_range_high": 1e-4, "clip_range_vf": 1e-4, "target_kl": 1e-9, "num_continuations": 2,
    "replay_size": 1,
}  # fmt: skip
SAME = {"policy", "env", "micro_batch_size"}  # the latter bounds the memory, and changes nothing but rounding
BASE: dict[Any, dict[str, Any]] = {PathConsistency: {"num_generations": 4}}
SWITCHES: dict[str, tuple[Any, dict[str, Any]]] = {  # of what is refused alone: an agent, and what turns it on
    "kl_loss": (GRPO, {"kl_in": "loss"}),
    "kl_horizon": (REINFORCE, {"kl_target": 0.1}),
    "sampler_level": (GRPO, {"sampler_correction": "mask"}),
    "sampler_cap": (GRPO, {"sampler_correction": "truncate"}),
    "num_continuations": (REINFORCE, {"credit": "q"}),
}


def off_by(policy: Any, mdp: Any, state: Any, generator: Any) -> Any:
    """A sampler whose log-probabilities are 0.3 too low in every other token, so that there is what to correct."""
    generation = sample(policy, mdp, state, generator)
    wrong = 0.3 * (torch.arange(generation.log_probs.shape[1]) % 2)
    return generation._replace(log_probs=generation.log_probs - wrong)


def trained(kind: Any, **settings: Any) -> tuple[list[dict[str, float]], torch.Tensor]:
    """The metrics of some updates, and the weights after them; two passes, for agents that have several."""
    passes = {"n_epochs": 2, "batch_size": None} if hasattr(kind, "n_epochs") else {}
    agent = agent_of(kind, **({"learning_rate": 0.01} | passes | BASE.get(kind, {}) | settings))
    agent.sampler, rows = off_by, list[dict[str, float]]()

    def keep(agent: Any, rollout: Any, metrics: dict[str, float]) -> None:
        rows.append({name: value for name, value in metrics.items() if name != "seconds"})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)  # of the sampler
        agent.learn(160, callback=keep)
    return rows, weights(agent)


def differ(one: Any, other: Any) -> bool:
    """Whether two trainings have other metrics or other weights."""
    return one[0] != other[0] or not one[1].equal(other[1])


def alternatives(kind: Any, name: str) -> list[Any]:
    """Values of a setting other than its default."""
    default, hint = next(f.default for f in fields(kind) if f.name == name), get_type_hints(kind)[name]
    parts = [hint, *get_args(hint)]
    choices = [each for part in parts if str(part).startswith("typing.Literal") for each in get_args(part)]
    if choices:
        return [each for each in choices if each != default]
    return [not default] if hint is bool else [NUMBERS[name]]


@every_kind
def test_a_setting_given_alone_changes_the_training_or_is_refused(kind: Any) -> None:
    """Every value of a choice, and one of each number. Control: the same settings twice train the same."""
    base, refused = trained(kind), set[str]()
    assert len(base[0]) > 1 and not differ(base, trained(kind))
    for name in (f.name for f in fields(kind) if f.name not in SAME):
        for value in alternatives(kind, name):
            try:
                found = trained(kind, **{name: value})
            except ValueError as error:
                assert str(error).startswith(f"{name} must be ") and f"got {value!r}" in str(error)
                refused.add(name)
            else:
                assert differ(base, found), f"{kind.__name__} ignores {name}={value!r}"
    assert refused == set(kind.unused_settings) | {
        f.name for f in fields(kind) if f.name in SWITCHES and f.name not in kind.unused_settings
    }


@pytest.mark.parametrize("name", SWITCHES)
def test_what_the_error_says_to_add_turns_it_on(name: str) -> None:
    """Alone it is refused with what to add; with that it changes the training. Its default is never refused."""
    kind, switch = SWITCHES[name]
    (key, on), value = *switch.items(), alternatives(kind, name)[0]
    with pytest.raises(ValueError, match=rf"{name} must be .* without {key}.*got {value!r}.*; add {key}") as error:
        agent_of(kind, **{name: value})
    assert f"add {key}={on!r}" in str(error.value) or "=" not in str(error.value).partition("; add ")[2]
    assert differ(trained(kind, **switch), trained(kind, **switch, **{name: value}))
    agent_of(kind, **{name: next(f.default for f in fields(kind) if f.name == name)})


def test_settings_that_depend_on_numbers() -> None:
    """A replay needs passes to be drawn for, a second clip range a first one; None is no clip, and needs nothing."""
    with pytest.raises(ValueError, match=r"replay_size must be 8 without n_epochs > 1, got 3.*; add n_epochs > 1"):
        agent_of(PathConsistency, n_epochs=1, replay_size=3)
    agent_of(PathConsistency, n_epochs=1)
    with pytest.raises(ValueError, match=r"clip_range_high must be 0.28 without clip_range, got 0.4"):
        agent_of(GRPO, clip_range=None, clip_range_high=0.4)
    agent_of(GRPO, clip_range=None, clip_range_high=None)
    free = {"clip_range": None, "loss": "cispo"}  # which clips at eps_high alone
    assert differ(trained(GRPO, **free, clip_range_high=1e-4), trained(GRPO, **free))


def test_a_loaded_agent_can_be_turned_off_by_one_setting(tmp_path: Path) -> None:
    """What depends on it has its default then, unless it is given too; otherwise it is as it was saved."""
    agent_of(REINFORCE, kl_in="loss", kl_loss="k2").save(tmp_path)
    env = task()
    loaded, off = REINFORCE.load(tmp_path, env), REINFORCE.load(tmp_path, env, kl_in="reward")
    assert (loaded.kl_in, loaded.kl_loss, off.kl_in, off.kl_loss) == ("loss", "k2", "reward", "k3")
    assert REINFORCE.load(tmp_path, env, kl_loss="k1").kl_loss == "k1"
    with pytest.raises(ValueError, match="kl_loss must be 'k3' without kl_in='loss', got 'k1'"):
        REINFORCE.load(tmp_path, env, kl_in="reward", kl_loss="k1")
    old = {"kl_loss": "k2", "sampler_cap": 3.0, "num_continuations": 8}  # saved when they were ignored
    assert merge_settings(REINFORCE, old, {"credit": "q"}, {}) == {"num_continuations": 8, "credit": "q"}


def test_an_agent_of_others_can_have_such_a_setting() -> None:
    """By `only_with`; and a field of the name of one of ours, which depends on nothing."""

    @dataclass(eq=False)
    class Own(REINFORCE):
        keep: int = only_with("baseline='mean'", lambda settings: settings["baseline"] == "mean", 2)
        num_continuations: int = 4

    env = task()
    Own(random_policy(env), env, num_continuations=2)
    Own(random_policy(env), env, keep=3, baseline="mean")
    with pytest.raises(ValueError, match="keep must be 2 without baseline='mean', got 3, which would be ignored"):
        Own(random_policy(env), env, keep=3)


def test_every_agent_is_tested() -> None:
    """The choices of each setting are found by its type."""
    assert set(alternatives(GRPO, "kl_loss")) == {"k1", "k2", "k3_rho", "exact"}
    assert alternatives(REINFORCE, "baseline") == ["mean"] and len(KINDS) == 6
