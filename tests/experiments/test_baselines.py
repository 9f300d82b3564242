"""What learns nothing, against enumeration and chance; Stable-Baselines3's agents in a trial."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.functional import value_loss
from agents.sampling import collect
from experiments import baselines
from experiments.baselines import best_of_n, best_of_n_log_probs, random_policy
from experiments.compare import CompareConfig
from experiments.errors import FlagError
from experiments.evaluation import Evaluator, tokens_to_reach
from experiments.stable_baselines import SB3A2C, SB3PPO, SB3MaskablePPO
from experiments.trial import _agent, read_metrics, run_trial
from tests.helpers.commands import tiny
from tests.helpers.policies import random_policy as arbitrary_policy
from textenv import exact
from textenv.shaping import length_penalty

TOY = {"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 2, "kl_coef": 0.3}


def toy(**arguments: Any) -> Any:
    """A toy of 14 texts."""
    return gym.make_vec("textenv/Toy-v0", **(TOY | arguments))


def paid(tree: Any) -> np.ndarray:
    """Score and shaping of each text, by walking from its end to its start."""
    states, actions = tree.paths()
    return np.array(
        [
            sum(tree.rewards[s, a] for s, a in zip(row, column, strict=True) if s >= 0)
            for row, column in zip(states, actions, strict=True)
        ]
    )


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("task", ["toy", "ties"])
def test_best_of_n_is_what_drawing_n_gives(n: int, task: str) -> None:
    """Against all n-tuples of answers, each with its probability; equals share; the KL is within its bound."""
    env = toy() if task == "toy" else toy(shaping=length_penalty(0.1))
    tree = exact.enumerate_tree(env)
    if task == "ties":
        rounding = 1e-12 * np.random.default_rng(0).random(tree.scores.shape)  # equals may differ in their last bits
        tree.scores[:] = np.round(tree.scores) / 10 + rounding
        tree.scores[tree.child != -1] = 0.0
    log_ref, returns = tree.completion_log_probs(tree.ref_log_probs), paid(tree)
    state, _ = tree.leaves()
    expected = np.zeros(len(state))
    for prompt in (0, 1):
        texts = np.flatnonzero(tree.prompt[state] == prompt)
        for drawn in itertools.product(texts, repeat=n):
            chance = np.exp(log_ref[list(drawn)].sum())
            best = [y for y in drawn if returns[y] > max(returns[list(drawn)]) - 1e-9]
            for y in best:  # one of the best that were drawn: as likely as it was drawn
                expected[y] += chance / len(best)
    found = np.exp(best_of_n_log_probs(tree, n))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    measured = best_of_n(Evaluator(env, 1, exact.solve(tree)), n)
    assert -1e-9 <= measured["kl"] <= np.log(n) - (n - 1) / n + 1e-9
    kl = float((expected / 2 * (np.log(expected) - log_ref)).sum())
    assert measured["kl"] == pytest.approx(kl, abs=1e-9)
    assert measured["objective"] == pytest.approx(float((expected / 2 * returns).sum()) - 0.3 * kl)
    assert np.abs(found - np.exp(log_ref)).max() > 0.01 or n == 1  # control


def test_drawn_best_of_n_agrees_with_the_exact_one() -> None:
    """Where the task cannot be enumerated the score is that of the exact one within its error, J is not above it."""
    env = toy(vocab_size=5, max_new_tokens=4)
    known = best_of_n(Evaluator.for_env(env, 1), 4)
    drawn = best_of_n(Evaluator(env, 2048, None), 4)
    assert drawn["score"] == pytest.approx(known["score"], abs=0.08)
    assert abs(best_of_n(Evaluator.for_env(env, 1), 1)["score"] - known["score"]) > 0.3  # control
    assert known["kl"] <= drawn["kl"] and drawn["objective"] < known["objective"] + 0.08


def test_a_large_n_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than CHUNK answers at once, of the same prompts, all n of which compete."""
    env, sizes = toy(vocab_size=5, max_new_tokens=4), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        rollout = collect(*args, **kwargs)
        sizes.append((len(rollout), rollout.prompts.tolist()))
        return rollout

    monkeypatch.setattr(baselines, "collect", counted)
    whole = best_of_n(Evaluator(env, 64, None), 16)
    prompts = [prompt for _, drawn in sizes for prompt in drawn]
    sizes.clear()
    monkeypatch.setattr(baselines, "CHUNK", 100)
    parts = best_of_n(Evaluator(env, 64, None), 16)
    assert [size for size, _ in sizes] == [100] * 10 + [24]
    assert [prompt for _, drawn in sizes for prompt in drawn] == prompts
    assert parts["score"] == pytest.approx(whole["score"], abs=0.1) and parts["kl"] == whole["kl"]


@pytest.mark.parametrize("env_id", ["textenv/Toy-v0", "textenv/TajMahal-v0"])
def test_random_is_uniform_over_what_is_allowed(env_id: str) -> None:
    """Every allowed token has the same probability; the reference's policy is left alone."""
    env = gym.make_vec(env_id)
    reference = arbitrary_policy(env)
    before = [p.clone() for p in reference.parameters()]
    tree = exact.enumerate_tree(env)
    known = exact.evaluate(tree, random_policy(reference))
    allowed = tree.child != -2
    expected = np.where(allowed, 1 / allowed.sum(axis=1, keepdims=True), 0.0)
    np.testing.assert_allclose(np.exp(known.log_probs), expected, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, reference.parameters(), strict=True))


def test_tokens_to_a_share_are_read_off_the_curve() -> None:
    """The first crossing, on a straight line between two evaluations; None where there is none."""
    baselines = {"reference": 1.0, "optimum": 3.0}
    rows = [
        {"num_timesteps": 0, "eval/objective": 1.0},
        {"num_timesteps": 50},
        {"num_timesteps": 100, "eval/objective": 2.6},
        {"num_timesteps": 200, "eval/objective": 3.0},
        {"num_timesteps": 300, "eval/objective": 2.0},
    ]
    assert tokens_to_reach(0.8, rows, baselines) == pytest.approx(100)
    assert tokens_to_reach(0.9, rows, baselines) == pytest.approx(150)
    assert tokens_to_reach(0.4, rows, baselines) == pytest.approx(50)
    assert tokens_to_reach(1.1, rows, baselines) is None
    assert tokens_to_reach(0.9, rows, {"reference": 1.0, "optimum": None}) is None
    assert tokens_to_reach(0.0, rows, baselines) == 0.0


@pytest.mark.parametrize("agent", [SB3PPO, SB3A2C, SB3MaskablePPO])
def test_stable_baselines_starts_at_the_given_policy_and_counts_tokens(agent: Any) -> None:
    """On a masked task; the given policy is not trained, torch's checks stay as they are."""
    env = gym.make_vec("textenv/TajMahal-v0")
    start = arbitrary_policy(env).float()
    before = [p.clone() for p in start.parameters()]
    told: list[tuple[int, dict[str, float]]] = []
    found = agent(start, env, n_episodes=8, n_steps=4, seed=0)
    for one, other in zip(before, found.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    found.learn(100, lambda agent, rollout, metrics: told.append((agent.num_timesteps, metrics)))
    assert [tokens for tokens, _ in told] == [32, 64, 96, 128] and found.num_updates == 4
    assert all("train/value_loss" in metrics for _, metrics in told)
    assert any("objective/scores" in metrics for _, metrics in told)
    assert all(torch.equal(one, other) for one, other in zip(before, start.parameters(), strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(before, found.policy.parameters(), strict=True))
    assert torch.distributions.Distribution._validate_args
    found.learn(32, lambda agent, rollout, metrics: told.append((agent.num_timesteps, metrics)), False, False)
    assert told[-1][0] == found.num_timesteps == 160 and len(told) == found.num_updates == 5


@pytest.mark.parametrize("agent", [SB3PPO, SB3A2C, SB3MaskablePPO])
def test_a_callback_stops_stable_baselines(agent: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """As it stops ours: after that update, no token more; learning can go on afterwards. A progress bar on request."""
    found = agent(arbitrary_policy(toy()).float(), toy(), n_episodes=8, n_steps=4, seed=0)
    found.learn(1000, lambda agent, rollout, metrics: agent.num_updates < 2)
    assert (found.num_timesteps, found.num_updates) == (64, 2) and "tok" not in capsys.readouterr().err
    found.learn(32, progress_bar=True, reset_num_timesteps=False)
    assert (found.num_timesteps, found.num_updates) == (96, 3) and "32/32" in capsys.readouterr().err
    with pytest.raises(ValueError, match="total_timesteps must not be negative"):
        found.learn(-1)


@pytest.mark.parametrize("agent", [SB3PPO, SB3A2C, SB3MaskablePPO])
def test_stable_baselines_is_set_up_as_ours_and_loads_what_it_saved(agent: Any, tmp_path: Path) -> None:
    """beta, gamma = 1, Adam with our eps; weights, optimizer and counts come back, the first texts do not."""
    env = gym.make_vec("textenv/TajMahal-v0", kl_coef=0.3)
    fresh = agent(arbitrary_policy(env).float(), env, n_episodes=4, n_steps=8, seed=0)
    assert (fresh.algorithm.rollout_buffer.kl_coef, fresh.algorithm.rollout_buffer.gamma) == (0.3, 1.0)
    optimizer = fresh.algorithm.policy.optimizer
    assert type(optimizer) is torch.optim.Adam and optimizer.defaults["eps"] == 1e-5
    values, targets = torch.randn(2, 8, 1)
    theirs = fresh.algorithm.vf_coef * torch.nn.functional.mse_loss(values, targets)  # as its `train` has it
    ours = fresh.vf_coef * value_loss(values, targets, torch.ones(8, 1, dtype=torch.bool))
    torch.testing.assert_close(theirs, ours)
    fresh.learn(32)
    first = fresh.algorithm.rollout_buffer.observations["input_ids"].copy()
    fresh.save(str(tmp_path))
    loaded = agent.load(str(tmp_path), env)
    assert (loaded.num_timesteps, loaded.num_updates) == (32, 1)
    for one, other in zip(fresh.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    moments, same = (a.algorithm.policy.optimizer.state_dict()["state"] for a in (fresh, loaded))
    assert len(moments) == len(same) > 0
    assert all(torch.equal(moments[i]["exp_avg"], same[i]["exp_avg"]) for i in moments)
    loaded.learn(32, reset_num_timesteps=False)
    assert not np.array_equal(loaded.algorithm.rollout_buffer.observations["input_ids"], first)


@pytest.mark.parametrize(
    "flag", [{"n_epochs": 0}, {"batch_size": 0}, {"clip_range": -1.0}, {"vf_coef": -1.0}, {"max_grad_norm": -1.0}]
)
def test_senseless_settings_of_stable_baselines_are_refused(flag: dict[str, Any]) -> None:
    """By name."""
    env = toy()
    with pytest.raises(ValueError, match=next(iter(flag))):
        SB3PPO(arbitrary_policy(env).float(), env, **flag)


@pytest.mark.parametrize("flag", [{"lora_rank": 2}, {"log_completions": 1}])
def test_flags_that_stable_baselines_cannot_honour_are_refused(flag: dict[str, int]) -> None:
    """At once and by name, in `train` and in `compare`; our agents take them."""
    name = next(iter(flag)).replace("_", "-")
    with pytest.raises(FlagError, match=f"--{name} is for our agents, not for sb3-a2c"):
        tiny(agent="sb3-a2c", **flag)
    tiny(agent="actor_critic", **flag)
    if "lora_rank" in flag:
        with pytest.raises(FlagError, match="--lora-rank is for our agents, not for maskable-ppo"):
            CompareConfig(agents=["ppo", "maskable-ppo"], **flag).trials()


def test_checkpointing_by_a_flag_is_kept_when_a_trial_goes_on(tmp_path: Path) -> None:
    """It reaches the copy that Stable-Baselines3 trains, a new one and the one of a checkpoint."""
    config = tiny(agent="sb3-ppo", gradient_checkpointing=True)
    env = config.make_env()
    arbitrary_policy(env).float().save_pretrained(tmp_path / "initial")
    fresh = _agent(config, env, tmp_path, tmp_path / "initial")
    fresh.save(tmp_path / "checkpoint")
    again = _agent(config, env, tmp_path, tmp_path / "nowhere")
    assert fresh.policy.gradient_checkpointing and again.policy.gradient_checkpointing
    assert any(getattr(layer, "gradient_checkpointing", False) for layer in again.policy.model.modules())


@pytest.mark.filterwarnings("error")
def test_a_large_n_keeps_the_best() -> None:
    """Without a warning where poor answers get probability 0."""
    env = toy(vocab_size=4, max_new_tokens=4)
    measured = best_of_n(Evaluator.for_env(env, 1), 100_000)
    assert np.isfinite(list(measured.values())).all()


def test_masks_in_the_observation_are_as_good_as_masks_that_are_asked_for() -> None:
    """Same seed, same texts, same updates: PPO that sees the mask and MaskablePPO end at the same weights."""
    env = gym.make_vec("textenv/TajMahal-v0")
    start = arbitrary_policy(env).float()
    ends = []
    for agent in (SB3PPO, SB3MaskablePPO):
        found = agent(start, env, n_episodes=8, n_steps=8, learning_rate=1e-3, seed=0).learn(256)
        ends.append(exact.evaluate(env, found.policy).objective)
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)
    assert ends[0] != pytest.approx(exact.evaluate(env, start).objective, abs=1e-2)  # control: it has moved


@pytest.mark.parametrize("agent", ["sb3-a2c", "maskable-ppo"])
def test_a_stopped_trial_of_stable_baselines_goes_on(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its checkpoint, with optimizer and counts; it draws other texts, so the numbers may differ."""
    from experiments.trial import TrialLog

    config = tiny(agent=agent, total_timesteps=1000)
    initial = tmp_path / "initial"
    arbitrary_policy(config.make_env()).float().save_pretrained(initial)
    write = TrialLog.write

    def stop(self: TrialLog, row: dict[str, float]) -> None:
        write(self, row)
        if row["num_updates"] == 3:
            self.checkpoint()
        if row["num_updates"] == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialLog, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run_trial(config, tmp_path / "run", initial)
    summary = run_trial(config, tmp_path / "run", initial)
    rows = read_metrics(tmp_path / "run")
    assert [row["num_updates"] for row in rows] == list(range(summary["num_updates"] + 1))
    assert summary["num_timesteps"] == rows[-1]["num_timesteps"] == 1024
