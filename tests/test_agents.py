"""The agents as their users meet them: Stable-Baselines3's habits, and that they learn."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from agents import PPO, REINFORCE, ActorCritic, Rollout, TransformerPolicy, collect
from agents.agent import Agent
from agents.sampling import new_generator
from tests.tasks import make, random_reference, stories, words
from tests.test_gradients import random_policy
from textenv import exact
from textenv.tasks.taj_mahal import truth
from textenv.testing import play

KINDS = [REINFORCE, ActorCritic, PPO]
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


def test_every_epoch_uses_every_answer_once() -> None:
    """The minibatches of an epoch are a shuffle of all rows, and epochs are shuffled apart."""
    rows = agent_of(PPO, n_epochs=2, batch_size=6).minibatches(16)
    first, second = torch.cat(rows[:3]), torch.cat(rows[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(16))
    assert not first.equal(second) and first.tolist() != list(range(16))


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
    entropy = -float((known.visits[:, None] * probs * log_pi).sum())
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
    gained = exact.evaluate(env, policy).objective - best.reference_objective
    return gained / (best.objective - best.reference_objective)


@pytest.fixture(scope="module")
def small_toy() -> tuple[Any, TransformerPolicy]:
    """A toy and a policy at its reference."""
    env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3)
    return env, TransformerPolicy.for_env(env, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)


@every_kind
def test_a_small_toy_is_learnt(kind: Any, small_toy: tuple[Any, TransformerPolicy]) -> None:
    """Six thousand tokens bring each agent most of the way from the reference to the optimum."""
    env, start = small_toy
    assert abs(share(env, start)) < 0.05
    policy = copy.deepcopy(start)
    kind(policy, env, learning_rate=5e-3, seed=0).learn(6_000)
    assert 0.6 < share(env, policy) <= 1.0


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
    process = env.unwrapped.process
    rows = [
        {"prompt": text, "landmark": landmark}
        for text, landmark in zip(process.prompts.texts, process.prompts.columns["landmark"], strict=True)
    ]
    flipped = make(
        {
            "tokenizer": process.tokenizer,
            "prompts": rows,
            "reward": truth,
            "reward_weights": [-1.0],
            "reference": process.reference,
            "max_new_tokens": process.max_new_tokens,
            "kl_coef": process.kl_coef,
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
        (PPO, {"clip_range": -0.1}, "clip_range"),
        (ActorCritic, {"gae_lambda": 1.5}, "gae_lambda"),
        (REINFORCE, {"gamma": -1.0}, "gamma"),
        (REINFORCE, {"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    """The error names the setting, its range and the value."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=2)
    with pytest.raises(ValueError, match=rf"{message} must be in \[.*\], got"):
        kind(random_policy(env), env, **settings)


def test_the_continuations_of_q_are_counted() -> None:
    """A timestep is a token, also one that was written only to estimate Q."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3)
    plain, q = (REINFORCE(random_policy(env), env, credit=credit, seed=0) for credit in ("reward_to_go", "q"))
    for agent in (plain, q):
        agent.learn(1)
    assert q.num_timesteps > plain.num_timesteps > 0


def test_a_loaded_agent_can_be_given_another_seed(tmp_path: Path) -> None:
    """With the saved seed it goes on as it would have; with another one it draws other answers."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3)
    agent = REINFORCE(random_policy(env), env, seed=0)
    agent.learn(1)
    agent.save(tmp_path)
    same, other = REINFORCE.load(tmp_path, env), REINFORCE.load(tmp_path, env, seed=7)
    drawn = agent.collect().input_ids
    assert drawn.equal(same.collect().input_ids) and not drawn.equal(other.collect().input_ids)
