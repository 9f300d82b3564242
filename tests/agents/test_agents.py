"""The agents as their users meet them: Stable-Baselines3's habits, and that they learn."""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic, Agent
from agents.policy import TransformerPolicy
from agents.sampling import Rollout, collect, new_generator, sample
from agents.training import rollout_metrics
from agents.training.updater import minibatches
from tests.helpers.policies import random_policy
from tests.helpers.tasks import golden, make, random_reference, stories, words
from textenv import exact
from textenv.tasks.taj_mahal import truth
from textenv.testing import play

KINDS = [REINFORCE, ActorCritic, PPO, RLOO, GRPO]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
FOREVER = 10**9


def task(**arguments: Any) -> Any:
    """A small task with masks and prompts of different lengths."""
    return make(words(4, reference=random_reference(4, 3, sparse=True), max_new_tokens=4) | arguments)


def agent_of(kind: Any, env: Any = None, **settings: Any) -> Any:
    """An agent with a tiny policy in float32."""
    env = task() if env is None else env
    return kind(random_policy(env, scale=0.1).float(), env, **{"n_episodes": 16, "seed": 0, **settings})


def stop_after(updates: int) -> Callable[[Agent, Rollout, dict[str, float]], bool]:
    """A callback that ends learning after some updates."""
    return lambda agent, rollout, metrics: agent.num_updates < updates


def weights(agent: Agent) -> torch.Tensor:
    """All weights of a policy in one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in agent.policy.state_dict().values()])


# -- learn -------------------------------------------------------------------------------------------------------------


@every_kind
def test_learning_counts_tokens(kind: Any) -> None:
    """A timestep is a token that was written; the last batch is finished; an update is a batch."""
    written: list[int] = []
    agent = agent_of(kind)
    answer = agent.learn(150, callback=lambda agent, rollout, metrics: written.append(int(rollout.mask.sum())))
    assert answer is agent
    assert agent.num_timesteps == sum(written) >= 150 > sum(written[:-1])
    assert agent.num_updates == len(written)
    agent.learn(10)
    assert agent.num_updates == 1 and agent.num_timesteps < 150  # counted from zero again


@every_kind
def test_more_learning_is_more_learning(kind: Any) -> None:
    """SB3's habit: with reset_num_timesteps=False a second `learn(n)` writes n tokens more."""
    agent = agent_of(kind).learn(100)
    before, learnt = agent.num_timesteps, weights(agent)
    agent.learn(100, reset_num_timesteps=False)
    assert agent.num_timesteps >= before + 100
    assert not weights(agent).equal(learnt)


@every_kind
def test_a_callback_sees_each_update_and_can_stop(kind: Any) -> None:
    """It gets agent, answers and metrics; False stops, None does not."""
    seen: list[tuple[Any, ...]] = []

    def callback(*said: Any) -> bool | None:
        seen.append(said)
        return False if len(seen) == 3 else None

    agent = agent_of(kind)
    agent.learn(FOREVER, callback=callback)
    assert agent.num_updates == len(seen) == 3
    for sender, rollout, metrics in seen:
        assert sender is agent and len(rollout) == 16
        assert all(isinstance(value, float) and np.isfinite(value) for value in metrics.values())
        assert metrics["objective/scores"] == pytest.approx(float(rollout.scores.mean()))
        assert metrics["objective/rlhf_reward"] == pytest.approx(
            metrics["objective/scores"] + metrics["objective/non_score_reward"], abs=1e-5
        )
        # no shaping here: what is not score is the KL, and both halves of it are paid
        assert metrics["objective/non_score_reward"] == pytest.approx(-0.5 * metrics["objective/kl"], abs=1e-5)
        assert metrics["completions/mean_length"] == pytest.approx(float(rollout.mask.sum()) / 16)
        assert metrics["completions/clipped_ratio"] == pytest.approx(1.0 - float(rollout.stopped.float().mean()))


@pytest.mark.parametrize("shown", [True, False])
def test_the_progress_bar_is_shown_on_request(capsys: pytest.CaptureFixture[str], shown: bool) -> None:
    """It counts tokens and shows score and KL; by default there is none."""
    agent_of(REINFORCE).learn(50, progress_bar=shown)
    said = capsys.readouterr()
    assert ("tok" in said.err and "kl=" in said.err) if shown else said.err == said.out == ""


@every_kind
def test_the_seed_is_all_that_is_random(kind: Any) -> None:
    """Same seed, same weights, whatever the global generators say; another seed, other weights."""
    learnt = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002, the global one
        learnt.append(weights(agent_of(kind, seed=seed).learn(100)))
    assert learnt[0].equal(learnt[1]) and not learnt[0].equal(learnt[2])


def test_agents_differ() -> None:
    """Control for the tests over every kind: each rung takes other steps."""
    learnt = [weights(agent_of(kind).learn(FOREVER, callback=stop_after(2))) for kind in KINDS]
    assert not learnt[0].equal(learnt[1]) and not learnt[1].equal(learnt[2])


@every_kind
def test_single_and_batched_environments_are_the_same_task(kind: Any) -> None:
    """Only the process is used: the number of environments makes no difference."""
    arguments = words(4, reference=random_reference(4, 3, sparse=True))
    single, batched = make(arguments), gym.make_vec("textenv/Text-v0", num_envs=3, **arguments)
    assert weights(agent_of(kind, single).learn(60)).equal(weights(agent_of(kind, batched).learn(60)))


# -- PPO's epochs ------------------------------------------------------------------------------------------------------


def updates_of(**settings: Any) -> tuple[Any, list[dict[str, float]]]:
    """PPO after one batch, and what it said."""
    said: list[dict[str, float]] = []
    agent = agent_of(PPO, **settings)
    agent.learn(1, callback=lambda agent, rollout, metrics: said.append(metrics))
    return agent, said


@pytest.mark.parametrize(("n_epochs", "batch_size", "count"), [(1, None, 1), (3, None, 3), (2, 4, 8), (2, 6, 6)])
def test_ppo_takes_a_step_a_minibatch(n_epochs: int, batch_size: int | None, count: int) -> None:
    """n_epochs passes over 16 answers, ceil(16 / batch_size) minibatches each."""
    agent, said = updates_of(n_epochs=n_epochs, batch_size=batch_size)
    assert said[0]["num_minibatches"] == count
    assert {int(state["step"]) for state in agent.optimizer.state.values()} == {count}


@pytest.mark.parametrize("kind", [PPO, RLOO, GRPO])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_micro_batches_say_the_same_far_from_the_old_policy(kind: Any, size: int) -> None:
    """Where ratios differ and answers have different lengths, every metric is that of the whole minibatch, in whatever
    pieces it was; a plain mean of the pieces' means is another."""
    agent = agent_of(kind, n_epochs=1, micro_batch_size=size)
    rollout = agent.collect()
    noise = 0.7 * torch.randn(rollout.mask.shape, generator=new_generator("cpu", 3))
    far = replace(rollout, log_probs=torch.where(rollout.mask, rollout.log_probs + noise, 0.0))
    expected = agent_of(kind, n_epochs=1).train(far)
    found = agent.train(far)
    names = [name for name in expected if name.startswith(("policy/", "val/", "loss/"))]
    assert len(names) > 7 and expected["val/ess"] < 0.9
    assert {name: found[name] for name in names} == pytest.approx({name: expected[name] for name in names}, rel=1e-4)
    rows = torch.arange(len(far)).split(size)
    pieces = [agent_of(kind, n_epochs=1).train(far[part]) for part in rows] if kind is PPO else []
    if pieces:
        assert (
            abs(np.mean([piece["policy/approxkl_avg"] for piece in pieces]) / expected["policy/approxkl_avg"] - 1)
            > 1e-3
        )


def test_every_epoch_uses_every_answer_once() -> None:
    """The minibatches of an epoch are a shuffle of all rows, and epochs are shuffled apart."""
    rows = minibatches(16, n_epochs=2, batch_size=6, generator=new_generator("cpu", 0))
    first, second = torch.cat(rows[:3]), torch.cat(rows[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(16))
    assert not first.equal(second) and first.tolist() != list(range(16))


@every_kind
@pytest.mark.parametrize("size", [1, 5, 16, 99])
def test_micro_batches_learn_the_same(kind: Any, size: int) -> None:
    """Whatever is in memory at once: the same gradient within 1e-5, the same metrics, as many steps."""
    settings = {"n_epochs": 1} if hasattr(kind, "n_epochs") else {}
    whole, parts = (agent_of(kind, micro_batch_size=each, **settings) for each in (None, size))
    rollout = whole.collect()
    expected, found = whole.train(rollout), parts.train(rollout)
    for mine, other in zip(whole.policy.parameters(), parts.policy.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(other.grad, mine.grad, rtol=0, atol=1e-5)
    assert {name for name in expected if name.startswith("policy/clipfrac_")} <= found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-5)
    assert {int(state["step"]) for state in parts.optimizer.state.values()} == {1}


@pytest.mark.parametrize("kind", [ActorCritic, PPO])
@pytest.mark.parametrize("separate_critic", [False, True])
def test_a_warm_up_trains_the_critic_alone(kind: Any, separate_critic: bool) -> None:
    """For value_warmup updates the model stays bit for bit what it was, while V learns; then both learn."""
    env = task()
    policy = random_policy(env, scale=0.1, separate_critic=separate_critic).float()
    agent = kind(policy, env, value_warmup=2, n_episodes=16, seed=0)
    states = []

    def keep(agent: Any, rollout: Rollout, metrics: dict[str, float]) -> bool:
        states.append({name: tensor.clone() for name, tensor in agent.policy.state_dict().items()})
        return agent.num_updates < 3

    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    agent.learn(FOREVER, callback=keep)
    model = [name for name in before if name.startswith("model.")]
    assert all(torch.equal(before[name], state[name]) for state in states[:2] for name in model)
    assert not any(torch.equal(states[1][name], states[2][name]) for name in model if name.endswith("c_fc.weight"))
    value = [name for name in before if name.startswith(("value_head.", "critic.")) and name.endswith("weight")]
    assert len(value) > 1 or not separate_critic
    assert not any(torch.equal(before["value_head.weight"], state["value_head.weight"]) for state in states)


@pytest.mark.parametrize("kind", [ActorCritic, PPO])
@pytest.mark.parametrize("separate_critic", [False, True])
def test_the_critic_has_its_own_step_size(kind: Any, separate_critic: bool, tmp_path: Path) -> None:
    """The model moves by learning_rate alone, head and separate critic by vf_learning_rate; loaded, they still do."""
    env = task()

    def moved(**settings: Any) -> dict[str, float]:
        policy = random_policy(env, scale=0.1, separate_critic=separate_critic).float()
        before = {name: tensor.clone() for name, tensor in policy.named_parameters()}
        agent = kind(policy, env, n_episodes=16, seed=0, **settings)
        agent.learn(1)
        agent.save(tmp_path / str(settings))
        again = kind.load(tmp_path / str(settings), env)
        rates = [group["lr"] for group in again.optimizer.param_groups]
        assert rates == [settings["learning_rate"], settings.get("vf_learning_rate", settings["learning_rate"])]
        return {name: (p - before[name]).abs().max().item() for name, p in policy.named_parameters()}

    model, critic = ("model.",), ("value_head.", "critic.")
    frozen = moved(learning_rate=0.0, vf_learning_rate=1e-2)
    assert all(size == 0 for name, size in frozen.items() if name.startswith(model))
    assert frozen["value_head.weight"] > 0
    fixed = moved(learning_rate=1e-2, vf_learning_rate=0.0)
    assert all(size == 0 for name, size in fixed.items() if name.startswith(critic))
    assert max(size for name, size in fixed.items() if name.startswith(model)) > 0
    same = moved(learning_rate=1e-2)  # None is learning_rate
    assert same["value_head.weight"] > 0 and same == moved(learning_rate=1e-2, vf_learning_rate=1e-2)


def test_micro_batches_read_no_more_at_once() -> None:
    """The largest batch that passes through the policy with a gradient has micro_batch_size answers."""
    agent = agent_of(PPO, n_epochs=2, batch_size=8, micro_batch_size=3)
    rollout, sizes, forward = agent.collect(), [], agent.policy.evaluate_actions
    agent.policy.evaluate_actions = lambda ids, *rest, **more: (sizes.append(len(ids)), forward(ids, *rest, **more))[1]
    agent.train(rollout)
    assert sizes == [3, 3, 2] * 4


class Kept:
    """A tensor that is kept for a backward pass."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("kind", [ActorCritic, PPO])
def test_of_policy_and_separate_critic_one_is_in_memory(kind: Any) -> None:
    """What the policy keeps for its backward pass is gone when the critic reads; the gradient is that of the sum."""
    env = task()
    policy = random_policy(env, scale=0.1, separate_critic=True)
    agent = kind(policy, env, n_episodes=16, seed=0)
    rollout, values, alive = agent.collect(), policy.values, weakref.WeakSet[Kept]()
    advantages, returns = agent.advantages(rollout)
    at_the_critic: list[int] = []

    def watched(*texts: Any) -> torch.Tensor:
        at_the_critic.append(len(alive))
        return values(*texts)

    def keep(tensor: torch.Tensor) -> Kept:
        alive.add(kept := Kept(tensor.detach()))
        return kept

    policy.values = watched
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        agent.backward(torch.arange(16), lambda rows: agent.losses(rollout[rows], advantages[rows], returns[rows]))
        found = [parameter.grad.clone() for parameter in agent.trained]
        both = list(agent.losses(rollout, advantages, returns))  # control: made together
        expected = torch.autograd.grad(sum(loss for loss, _ in both), agent.trained)
    assert at_the_critic[0] == 0 < at_the_critic[1]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_target_kl_stops_the_epochs() -> None:
    """A tiny target ends the batch after its first step (rho = 1 there), a huge one never."""
    stopped, said = updates_of(n_epochs=5, learning_rate=0.05, target_kl=1e-6)
    assert said[0]["num_minibatches"] == 1
    assert {int(state["step"]) for state in stopped.optimizer.state.values()} == {1}
    assert updates_of(n_epochs=5, learning_rate=0.05, target_kl=1e6)[1][0]["num_minibatches"] == 5


def test_the_clip_holds_ppo_back() -> None:
    """With many large steps the clip binds; without a clip it never does, and the ratio runs further."""
    settings = {"n_epochs": 20, "learning_rate": 0.02}
    clipped = updates_of(clip_range=0.1, **settings)[1][0]
    free = updates_of(clip_range=None, **settings)[1][0]
    assert clipped["policy/clipfrac_avg"] > 0 == free["policy/clipfrac_avg"]
    assert clipped["policy/approxkl_avg"] < free["policy/approxkl_avg"]


def test_ppo_says_how_much_of_its_sample_counts_and_which_side_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """val/ess is 1 in the first minibatch and the smallest of them is told; clipfrac is high plus low."""
    shares: list[float] = []
    policy_loss = PPO.policy_loss

    def watched(*arguments: Any) -> Any:
        found = policy_loss(*arguments)
        shares.append(float(found[1]["val/ess"]))
        return found

    monkeypatch.setattr(PPO, "policy_loss", watched)
    assert updates_of(n_epochs=1)[1][0]["val/ess"] == pytest.approx(1.0, abs=1e-5)
    shares.clear()
    said = updates_of(n_epochs=20, learning_rate=0.02, clip_range=0.1)[1][0]
    assert shares[0] == pytest.approx(1.0, abs=1e-5) and 0 < said["val/ess"] == min(shares) < 0.9
    high, low = said["policy/clipfrac_high_avg"], said["policy/clipfrac_low_avg"]
    assert 0 < min(high, low) < said["policy/clipfrac_avg"] < max(high, low)
    assert updates_of(n_epochs=20, learning_rate=1e-5)[1][0]["val/ess"] > 0.999  # control: small steps


# -- the KL: how it is measured ----------------------------------------------------------------------------------------


ESTIMATES: dict[str, Callable[[float], float]] = {
    "k1": lambda log_ratio: log_ratio,
    "k2": lambda log_ratio: log_ratio**2 / 2,
    "k3": lambda log_ratio: float(np.exp(-log_ratio)) - 1 + log_ratio,
}


def kl_by_hand(rollout: Rollout, estimator: str) -> float:
    """The mean over answers of the estimator summed over their tokens."""
    total = 0.0
    for row, t in torch.nonzero(rollout.mask).tolist():
        total += ESTIMATES[estimator](float(rollout.log_probs[row, t] - rollout.ref_log_probs[row, t]))
    return total / len(rollout)


@pytest.mark.parametrize("estimator", sorted(ESTIMATES))
def test_the_kl_is_measured_by_the_estimator(estimator: str) -> None:
    """objective/kl is the estimator summed over each answer; what is paid, and so what is learnt, is k1 anyway."""
    seen: list[tuple[Rollout, dict[str, float]]] = []

    def callback(agent: Agent, rollout: Rollout, metrics: dict[str, float]) -> bool:
        seen.append((rollout, metrics))
        return len(seen) < 3

    learnt = weights(agent_of(REINFORCE, kl_estimator=estimator).learn(FOREVER, callback=callback))
    for rollout, metrics in seen:
        assert len(set(rollout.mask.sum(dim=1).tolist())) > 1
        assert metrics["objective/kl"] == pytest.approx(kl_by_hand(rollout, estimator), abs=1e-5)
        others = [kl_by_hand(rollout, name) for name in ESTIMATES if name != estimator]
        assert all(abs(metrics["objective/kl"] - other) > 1e-4 for other in others)  # control
        assert metrics["objective/non_score_reward"] == pytest.approx(-0.5 * kl_by_hand(rollout, "k1"), abs=1e-5)
        assert "objective/kl_coef" not in metrics
    assert learnt.equal(weights(agent_of(REINFORCE).learn(FOREVER, callback=stop_after(3))))


@pytest.mark.parametrize("estimator", sorted(ESTIMATES))
def test_padding_has_no_kl(estimator: str) -> None:
    """Columns behind the answers change no estimate."""
    env = task()
    rollout = collect(env, random_policy(env), 16, generator=new_generator("cpu", 0))
    before = rollout_metrics(rollout, estimator)
    wide = copy.copy(rollout)
    for name in ("mask", "log_probs", "ref_log_probs", "rewards"):
        setattr(wide, name, torch.nn.functional.pad(getattr(rollout, name), (0, 3)))
    assert rollout_metrics(wide, estimator) == pytest.approx(before, abs=1e-6)
    wide.log_probs = wide.log_probs + ~wide.mask  # control: a log-probability there would count
    assert abs(rollout_metrics(wide, estimator)["objective/kl"] - before["objective/kl"]) > 0.1


def test_the_estimators_estimate_the_exact_kl() -> None:
    """k1 and k3 of many answers are the enumerated KL over whole texts within five standard errors; k2 is not."""
    env = task()
    policy = random_policy(env, scale=0.5)
    known = exact.evaluate(env, policy).kl
    rollout = collect(env, policy, 4000, generator=new_generator("cpu", 0), values=False)
    for name in ESTIMATES:
        each = [rollout_metrics(rollout[i : i + 100], name)["objective/kl"] for i in range(0, 4000, 100)]
        error = np.std(each, ddof=1) / np.sqrt(len(each))
        assert (abs(np.mean(each) - known) < 5 * error) == (name != "k2"), name


@pytest.mark.parametrize("kind", [REINFORCE, PPO])
def test_an_agent_says_the_gold_score_where_there_is_one(kind: Any) -> None:
    """objective/gold_scores is the batch's mean; tasks without a gold reward have no such metric."""
    for gold_reward in (golden, None):
        seen: list[tuple[Rollout, dict[str, float]]] = []
        agent = agent_of(kind, task(gold_reward=gold_reward))
        agent.learn(1, callback=lambda agent, rollout, metrics, seen=seen: seen.append((rollout, metrics)))
        rollout, metrics = seen[0]
        assert ("objective/gold_scores" in metrics) == (gold_reward is not None)
        if rollout.gold_scores is not None:
            assert metrics["objective/gold_scores"] == pytest.approx(float(rollout.gold_scores.mean()))


# -- the KL: where it is steered ---------------------------------------------------------------------------------------


STEERED = {"kl_target": 0.2, "kl_horizon": 80}  # of 16 answers an update: beta moves by up to 4% each


def steered_updates(agent: Agent, updates: int) -> list[tuple[Rollout, dict[str, float]]]:
    """Learn for some updates more; the answers and metrics of each."""
    seen: list[tuple[Rollout, dict[str, float]]] = []

    def callback(agent: Agent, rollout: Rollout, metrics: dict[str, float]) -> bool:
        seen.append((rollout, metrics))
        return len(seen) < updates

    agent.learn(FOREVER, callback=callback, reset_num_timesteps=False)
    return seen


def paid_by_hand(rollout: Rollout, beta: float) -> torch.Tensor:
    """The score on each answer's last token and -beta times the log-ratio on all, [B, T]; there is no shaping here."""
    paid = torch.where(rollout.mask, -beta * (rollout.log_probs - rollout.ref_log_probs), 0.0)
    for row in range(len(rollout)):
        paid[row, int(torch.nonzero(rollout.mask[row]).max())] += rollout.scores[row]
    return paid


@every_kind
def test_beta_is_steered_and_is_what_is_paid(kind: Any) -> None:
    """objective/kl_coef follows the controller from the task's beta on, rewards are paid with it, the task's stays."""
    env = task()
    agent, beta, betas = agent_of(kind, env, **STEERED), 0.5, []
    for rollout, metrics in steered_updates(agent, 6):
        assert metrics["objective/kl_coef"] == pytest.approx(beta, rel=1e-6)
        betas.append(beta)
        assert torch.allclose(rollout.rewards, paid_by_hand(rollout, beta).float(), atol=1e-5)
        assert beta == 0.5 or not torch.allclose(rollout.rewards, paid_by_hand(rollout, 0.5).float(), atol=1e-4)
        error = min(max((kl_by_hand(rollout, "k1") - 0.2) / 0.2, -0.2), 0.2)
        beta *= 1 + error * 16 / 80
    assert agent.kl_coef == pytest.approx(beta, rel=1e-6)
    assert len(set(betas)) == 6 and env.unwrapped.mdp.kl_coef == 0.5
    plain = agent_of(kind, env)  # control: without a target the task's beta is paid, and none is told
    assert "objective/kl_coef" not in steered_updates(plain, 2)[-1][1] and plain.kl_coef is None


@pytest.mark.parametrize("settings", [{}, {"credit": "q", "num_continuations": 2}], ids=["reward_to_go", "q"])
def test_a_steered_agent_learns_as_in_an_environment_with_its_beta(settings: dict[str, Any]) -> None:
    """With beta at 0.1 in a task of 0.5 it takes the step that it takes in a task of 0.1, continuations included."""
    steered, there, here = (
        agent_of(REINFORCE, task(kl_coef=kl_coef), **settings, **more)
        for kl_coef, more in ((0.5, STEERED), (0.1, {}), (0.5, {}))
    )
    steered.kl_coef = 0.1
    for agent in (steered, there, here):
        agent.learn(1)
    assert weights(steered).equal(weights(there))
    assert not weights(steered).equal(weights(here))  # control


def test_continuations_are_paid_with_the_beta_of_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With credit="q" every continuation's rewards hold the beta that objective/kl_coef tells of its update."""
    onward: list[Rollout] = []

    def watched(*arguments: Any, **named: Any) -> Rollout:
        onward.append(collect(*arguments, **named))
        return onward[-1]

    monkeypatch.setattr("agents.reinforce.collect", watched)
    agent = agent_of(REINFORCE, credit="q", num_continuations=2, **STEERED)
    betas = []
    for _ in range(3):
        onward.clear()
        ((_, metrics),) = steered_updates(agent, 1)
        assert onward
        for rollout in onward:
            beta = metrics["objective/kl_coef"]
            assert torch.allclose(rollout.rewards, paid_by_hand(rollout, beta).float(), atol=1e-5)
            assert beta == 0.5 or not torch.allclose(rollout.rewards, paid_by_hand(rollout, 0.5).float(), atol=1e-4)
            betas.append(beta)
    assert len(set(betas)) == 3  # control: beta did move


@every_kind
def test_a_loaded_agent_steers_on(tmp_path: Path, kind: Any) -> None:
    """Saved and loaded after three of six updates, beta and weights go on as if nothing had happened."""
    env = task()
    whole = [metrics["objective/kl_coef"] for _, metrics in steered_updates(agent_of(kind, env, **STEERED), 6)]
    half = agent_of(kind, env, **STEERED)
    before = [metrics["objective/kl_coef"] for _, metrics in steered_updates(half, 3)]
    half.save(tmp_path)
    loaded = kind.load(tmp_path, env=env)
    assert loaded.kl_coef == half.kl_coef != 0.5
    assert before + [metrics["objective/kl_coef"] for _, metrics in steered_updates(loaded, 3)] == whole
    fresh = kind.load(tmp_path, env=env, kl_target=None)  # control: without a target it is paid the task's again
    ((_, metrics),) = steered_updates(fresh, 1)
    assert "objective/kl_coef" not in metrics and fresh.kl_coef is None
    assert metrics["objective/non_score_reward"] == pytest.approx(-0.5 * metrics["objective/kl"], abs=1e-5)
    predicts = kind.load(tmp_path)  # without an environment: it keeps beta for when it is saved again
    assert predicts.kl_coef == half.kl_coef


def test_an_agent_that_was_not_steered_can_be(tmp_path: Path) -> None:
    """A target given to `load` steers from the task's beta on."""
    env = task()
    agent_of(REINFORCE, env).learn(50).save(tmp_path)
    loaded = REINFORCE.load(tmp_path, env=env, **STEERED)
    betas = [metrics["objective/kl_coef"] for _, metrics in steered_updates(loaded, 3)]
    assert betas[0] == 0.5 and len(set(betas)) == 3


# -- predict -----------------------------------------------------------------------------------------------------------


def test_predict_takes_one_text_or_many() -> None:
    """Arrays [L] give a token, [B, L] give [B]; the state is passed through."""
    env = task()
    agent = agent_of(PPO, env)
    observation, _ = env.reset(seed=0)
    token, state = agent.predict(observation, state="kept", deterministic=True)
    assert np.shape(token) == () and env.action_space.contains(np.int64(token)) and state == "kept"
    many = {name: np.stack([value] * 5) for name, value in observation.items()}
    tokens, _ = agent.predict(many, deterministic=True)
    assert tokens.shape == (5,) and (tokens == token).all()


def test_predict_is_pi() -> None:
    """Sampled tokens come with the probabilities of pi, masks and temperature included; deterministic is its mode."""
    env = task()
    policy = random_policy(env, temperature=1.5)
    agent = PPO(policy, env, seed=0)
    tree = exact.enumerate_tree(env)
    log_probs = exact.evaluate(tree, policy).log_probs
    checked = 0
    for state in range(len(tree.prompt)):
        ids, mask = tree.observations(slice(state, state + 1))
        pi = np.exp(log_probs[state])
        observation = {"input_ids": np.repeat(ids, 1000, axis=0), "attention_mask": np.repeat(mask, 1000, axis=0)}
        tokens, _ = agent.predict(observation)
        shares = np.bincount(tokens, minlength=4) / 1000
        assert not shares[pi == 0].any()
        # six standard deviations: false failure below 1e-7 over all comparisons
        assert (np.abs(shares - pi) <= 6 * np.sqrt(pi * (1 - pi) / 1000) + 1e-9).all()
        assert agent.predict({"input_ids": ids[0], "attention_mask": mask[0]}, deterministic=True)[0] == pi.argmax()
        checked += int((pi == 0).any())
    assert checked > 0  # else no mask was at work


def test_predict_draws_from_the_agents_generator() -> None:
    """The same seed gives the same tokens; global generators are left alone."""
    observation = task().reset(seed=0)[0]
    many = {name: np.stack([value] * 50) for name, value in observation.items()}
    before = torch.get_rng_state()
    first, again = (agent_of(PPO, seed=5).predict(many)[0] for _ in range(2))
    assert np.array_equal(first, again) and torch.equal(before, torch.get_rng_state())
    assert len(set(first.tolist())) > 1


def test_sb3s_evaluate_policy_runs_unchanged() -> None:
    """On a Monitor-wrapped env: greedy episodes pay exactly what replaying them pays."""
    env = task()
    agent = agent_of(PPO, env)
    greedy: dict[tuple[float, int], int] = {}
    for prompt in range(len(env.unwrapped.prompts)):
        observation, _ = env.reset(options={"prompt": prompt})
        tokens, terminated = [], False
        while not terminated:
            tokens.append(int(agent.predict(observation, deterministic=True)[0]))
            observation, _, terminated, _, _ = env.step(tokens[-1])
        episode = play(env, prompt, tokens)
        greedy[round(float(episode.rewards.sum()), 5), len(tokens)] = prompt
    returns, lengths = evaluate_policy(agent, Monitor(env), n_eval_episodes=30, return_episode_rewards=True)
    found = {(round(total, 5), length) for total, length in zip(returns, lengths, strict=True)}
    assert found == greedy.keys()


def test_the_mean_of_evaluate_policy_is_the_expected_reward() -> None:
    """Sampled episodes of the unbound env: score + beta log pi_ref in expectation, within five standard errors."""
    env = task()
    agent = agent_of(PPO, env)
    known = exact.evaluate(env, agent.policy)
    probs = np.exp(known.log_probs)
    log_pi = np.where(probs > 0, known.log_probs, 0.0)
    entropy = -float((known.occupancy[:, None] * probs * log_pi).sum())
    expected = known.objective - 0.5 * entropy  # J pays -beta log pi on top
    returns, _ = evaluate_policy(
        agent, Monitor(env), n_eval_episodes=600, deterministic=False, return_episode_rewards=True
    )
    assert abs(np.mean(returns) - expected) < 5 * np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - known.objective) > 5 * np.std(returns) / np.sqrt(len(returns))  # control


# -- save and load -----------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("separate_critic", [False, True])
def test_a_loaded_agent_goes_on_bit_identically(tmp_path: Path, kind: Any, separate_critic: bool) -> None:
    """Six updates are three, a save, a load, and three more: weights, counts and the optimizer's state."""
    env = task()

    def new() -> Any:
        return kind(random_policy(env, scale=0.1, separate_critic=separate_critic).float(), env, n_episodes=16, seed=0)

    whole = new().learn(FOREVER, callback=stop_after(6))
    new().learn(FOREVER, callback=stop_after(3)).save(tmp_path / "agent")
    half = kind.load(tmp_path / "agent", env=env)
    assert half.num_updates == 3 and not weights(half).equal(weights(whole))
    half.learn(FOREVER, callback=stop_after(6), reset_num_timesteps=False)
    assert weights(half).equal(weights(whole))
    assert (half.num_timesteps, half.num_updates) == (whole.num_timesteps, whole.num_updates)

    forgetful = kind.load(tmp_path / "agent", env=env)  # control: without the optimizer's state it goes elsewhere
    forgetful.optimizer = torch.optim.Adam(forgetful.policy.parameters(), lr=forgetful.learning_rate, eps=1e-5)
    forgetful.learn(FOREVER, callback=stop_after(6), reset_num_timesteps=False)
    assert not weights(forgetful).equal(weights(whole))


def test_settings_are_saved_and_can_be_overridden(tmp_path: Path) -> None:
    """Every setting comes back; what `load` is given wins, also over the optimizer's learning rate."""
    agent = agent_of(PPO, learning_rate=1e-2, clip_range=None, batch_size=4, gae_lambda=0.5).learn(20)
    agent.save(tmp_path)
    loaded = PPO.load(tmp_path)
    assert {name: getattr(loaded, name) for name in PPO.hyperparameters()} == {
        name: getattr(agent, name) for name in PPO.hyperparameters()
    }
    faster = PPO.load(tmp_path, env=task(), learning_rate=0.5)
    assert {group["lr"] for group in faster.optimizer.param_groups} == {0.5} and faster.clip_range is None
    json.loads((tmp_path / "agent.json").read_text())


def test_an_agent_without_an_environment_predicts(tmp_path: Path) -> None:
    """`load(folder)` is enough to predict where nothing is masked."""
    env = task(reference=random_reference(4, 3, sparse=False))
    agent = agent_of(REINFORCE, env)
    agent.save(tmp_path)
    observation, _ = env.reset(seed=0)
    alone = REINFORCE.load(tmp_path)
    assert alone.predict(observation, deterministic=True)[0] == agent.predict(observation, deterministic=True)[0]


# -- learning ----------------------------------------------------------------------------------------------------------


def share(env: Any, policy: TransformerPolicy) -> float:
    """How far J has come from the reference (0) to the exact optimum (1)."""
    best = exact.solve(env)
    return best.normalized_objective(exact.evaluate(env, policy).objective)


@pytest.fixture(scope="module")
def small_toy() -> tuple[Any, TransformerPolicy]:
    """A toy and a policy at its reference."""
    env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3)
    return env, TransformerPolicy.for_env(env, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)


@every_kind
def test_a_small_toy_is_learnt(kind: Any, small_toy: tuple[Any, TransformerPolicy]) -> None:
    """Six thousand tokens bring each agent more than half of the way from the reference to the optimum."""
    env, start = small_toy
    assert abs(share(env, start)) < 0.05
    policy = copy.deepcopy(start)
    kind(policy, env, learning_rate=5e-3, seed=0).learn(6_000)
    assert 0.5 < share(env, policy) <= 1.0


@pytest.mark.parametrize("kl_coef", [0.1, 2.0])
def test_a_target_brings_the_exact_kl_near_it(kl_coef: float, small_toy: tuple[Any, TransformerPolicy]) -> None:
    """Eight thousand tokens: the enumerated KL ends at 0.3 +- 0.15, in the mean of three seeds, for it swings around
    its target; without a target far above it, or far below."""
    env, start = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3, kl_coef=kl_coef), small_toy[1]
    kls = []
    for steering in ({"kl_target": 0.3, "kl_horizon": 200}, {}):
        ends = []
        for seed in range(3):
            policy = copy.deepcopy(start)
            REINFORCE(policy, env, learning_rate=5e-3, seed=seed, **steering).learn(8_000)
            ends.append(exact.evaluate(env, policy).kl)
        kls.append(np.mean(ends))
    assert abs(kls[0] - 0.3) < 0.15
    assert kls[1] > 1.0 if kl_coef == 0.1 else kls[1] < 0.12


def test_without_a_learning_rate_nothing_is_learnt(small_toy: tuple[Any, TransformerPolicy]) -> None:
    """Control: the same loop with steps of size zero stays at the reference."""
    env, start = small_toy
    policy = copy.deepcopy(start)
    PPO(policy, env, learning_rate=0.0, seed=0).learn(1_000)
    assert share(env, policy) == pytest.approx(share(env, start), abs=1e-9)


@pytest.mark.slow
@every_kind
def test_taj_mahal_is_learnt_and_only_from_its_reward(kind: Any) -> None:
    """40 000 tokens: above 90% of the way to the exact optimum; with the reward's sign flipped, below the reference."""
    env = gym.make("textenv/TajMahal-v0")
    mdp = env.unwrapped.mdp
    rows = [
        {"prompt": text, "landmark": landmark}
        for text, landmark in zip(mdp.prompts.texts, mdp.prompts.columns["landmark"], strict=True)
    ]
    flipped = make(
        {
            "tokenizer": mdp.tokenizer,
            "prompts": rows,
            "reward": truth,
            "reward_weights": [-1.0],
            "reference": mdp.reference,
            "max_new_tokens": mdp.max_new_tokens,
            "kl_coef": mdp.kl_coef,
        }
    )
    start = TransformerPolicy.for_env(env)
    learnt, misled = copy.deepcopy(start), copy.deepcopy(start)
    kind(learnt, env, learning_rate=1e-3, seed=0).learn(40_000)
    kind(misled, flipped, learning_rate=1e-3, seed=0).learn(40_000)
    assert 0.9 < share(env, learnt) <= 1.0
    assert share(env, misled) < 0


# -- on a GPU ----------------------------------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_says_what_the_cpu_says() -> None:
    """Log-probabilities and values of the same answers are equal on both devices."""
    env = task()
    policy = random_policy(env)
    there = copy.deepcopy(policy).to("cuda")
    rollout = collect(env, there, 32, generator=new_generator("cuda", 0))
    assert rollout.rewards.device.type == rollout.input_ids.device.type == "cuda"
    assert rollout.action_mask is not None and rollout.values is not None
    with torch.no_grad():
        here = policy.evaluate_actions(
            rollout.input_ids.cpu(), rollout.attention_mask.cpu(), rollout.num_tokens, rollout.action_mask.cpu()
        )
    mask = rollout.mask.cpu()
    assert here.values is not None
    assert torch.allclose(here.log_probs[mask], rollout.log_probs.cpu()[mask], rtol=1e-5, atol=1e-5)
    assert torch.allclose(here.values[mask], rollout.values.cpu()[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@needs_cuda
def test_a_language_model_reference_works_with_a_policy_on_a_gpu(assets: Path) -> None:
    """At the reference the KL is zero there too."""
    env = make(stories(assets, max_new_tokens=8))
    policy = TransformerPolicy.for_env(env).to("cuda")
    assert abs(float(collect(env, policy, 16, generator=new_generator("cuda", 0)).kl.mean())) < 1e-3


@pytest.mark.gpu
@needs_cuda
def test_ppo_learns_on_a_gpu(small_toy: tuple[Any, TransformerPolicy], tmp_path: Path) -> None:
    """The same toy, the same bar; saved there, loaded there."""
    env, start = small_toy
    policy = copy.deepcopy(start).to("cuda")
    agent = PPO(policy, env, learning_rate=5e-3, seed=0).learn(6_000)
    assert share(env, policy) > 0.6
    agent.save(tmp_path)
    loaded = PPO.load(tmp_path, env=env, device="cuda")
    assert share(env, loaded.policy) == pytest.approx(share(env, policy), abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (PPO, {"n_epochs": 0}, "n_epochs"),
        (PPO, {"batch_size": 0}, "batch_size"),
        (PPO, {"value_warmup": -1}, "value_warmup"),
        (ActorCritic, {"value_warmup": -1}, "value_warmup"),
        (PPO, {"vf_learning_rate": -1e-3}, "vf_learning_rate"),
        (RLOO, {"num_generations": 1}, "num_generations"),
        (RLOO, {"n_epochs": 0}, "n_epochs"),
        (GRPO, {"num_generations": 1}, "num_generations"),
        (GRPO, {"clip_range_high": -0.1}, "clip_range_high"),
        (GRPO, {"micro_batch_size": 0}, "micro_batch_size"),
        (PPO, {"clip_range": -0.1}, "clip_range"),
        (ActorCritic, {"gae_lambda": 1.5}, "gae_lambda"),
        (REINFORCE, {"gamma": -1.0}, "gamma"),
        (REINFORCE, {"learning_rate": float("nan")}, "learning_rate"),
        (REINFORCE, {"kl_target": 0.0}, "kl_target"),
        (PPO, {"kl_target": -1.0}, "kl_target"),
        (ActorCritic, {"kl_target": float("nan")}, "kl_target"),
        (PPO, {"kl_target": 1.0, "kl_horizon": 0}, "kl_horizon"),
        (PPO, {"kl_target": 1.0, "kl_horizon": 31, "n_episodes": 32}, "kl_horizon"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    """The error names the setting, its range and the value."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=2)
    with pytest.raises(ValueError, match=rf"{message} must be in \[.*\], got"):
        kind(random_policy(env), env, **settings)


@every_kind
@pytest.mark.parametrize("estimator", ["k4", "K1", "", None])
def test_an_estimator_that_is_none_is_refused(kind: Any, estimator: Any) -> None:
    """The error lists the three, and the value."""
    with pytest.raises(ValueError, match=f"kl_estimator must be one of k1, k2, k3, got {estimator!r}"):
        agent_of(kind, kl_estimator=estimator)


@every_kind
def test_a_target_needs_a_beta_to_start_from(kind: Any) -> None:
    """In a task without a KL a target is refused; without a target the task is fine."""
    env = task(kl_coef=0.0)
    with pytest.raises(ValueError, match=r"kl_target needs an environment with kl_coef > 0 to start from, got 0"):
        agent_of(kind, env, kl_target=1.0)
    agent_of(kind, env)


def test_the_continuations_of_q_are_counted() -> None:
    """A timestep is a token, also one that was written only to estimate Q."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3)
    plain, q = (REINFORCE(random_policy(env), env, credit=credit, seed=0) for credit in ("reward_to_go", "q"))
    for agent in (plain, q):
        agent.learn(1)
    assert q.num_timesteps > plain.num_timesteps > 0


def test_what_an_agent_generates_by_writes_its_continuations_too() -> None:
    """With credit="q": every token that is counted was written by `agent.sampler`, answers' and continuations'."""
    agent = agent_of(REINFORCE, credit="q", num_continuations=2)
    rows: list[int] = []

    def counted(policy: Any, mdp: Any, texts: Any, generator: torch.Generator) -> Any:
        rows.append(len(texts.prompt))
        return sample(policy, mdp, texts, generator)

    agent.sampler = counted
    rollout = agent.collect()
    assert rows == [len(rollout)]
    agent.train(rollout)
    assert sum(rows) == len(rollout) + 2 * int((rollout.mask.sum(dim=1) - 1).sum())


def test_a_loaded_agent_can_be_given_another_seed(tmp_path: Path) -> None:
    """With the saved seed it goes on as it would have; with another one it draws other answers."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3)
    agent = REINFORCE(random_policy(env), env, seed=0)
    agent.learn(1)
    agent.save(tmp_path)
    same, other = REINFORCE.load(tmp_path, env), REINFORCE.load(tmp_path, env, seed=7)
    drawn = agent.collect().input_ids
    assert drawn.equal(same.collect().input_ids) and not drawn.equal(other.collect().input_ids)
