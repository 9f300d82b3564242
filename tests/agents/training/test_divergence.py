"""A loss or gradient that is not finite changes nothing, is counted, and ends training with a diagnosis."""

from __future__ import annotations

import copy
import math
import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from agents import GRPO, PPO, REINFORCE, ActorCritic, Diverged, PathConsistency
from agents.sampling import GraphSampler, collect, generate_sampler, new_generator, sample
from agents.training import METRICS, Metric, StepGuard, check_finite
from agents.training.divergence import MOST_SKIPPED, abridge, advice
from tests.helpers.agents import FOREVER, agent_of, every_kind, task
from tests.helpers.policies import random_policy
from tests.helpers.tasks import sparse, toy
from tests.helpers.threads import on_threads

pytestmark = pytest.mark.filterwarnings("ignore::agents.TrainingWarning")  # tests/agents/training/test_health.py
SEVERAL = {"n_epochs": 2, "batch_size": 8}
GROUPS = {PathConsistency: {"num_generations": 4}}  # several groups in a batch


def state_of(agent: Any) -> list[Tensor]:
    """Everything that a step changes: weights, master weights, Adam's moments and step counts."""
    state = [*agent.policy.state_dict().values(), *(each.master for each in agent.optimization.master_weights.entries)]
    moments = [value for each in agent.optimization.optimizer.state.values() for value in each.values()]
    return [torch.as_tensor(tensor).detach().clone() for tensor in [*state, *moments]]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Equal bit for bit."""
    return len(left) == len(right) and all(map(torch.equal, left, right))


def break_gradients(agent: Any, broken: Any, value: float = math.nan) -> list[list[Tensor]]:
    """Replaces one number of the gradient where `broken(index of the minibatch)`; returns the states before each."""
    backward, before = agent.backward, list[list[Tensor]]()

    def instead(*arguments: Any) -> Any:
        before.append(state_of(agent))
        metrics = backward(*arguments)
        if broken(len(before) - 1):
            gradients = agent.optimization.stepped
            next(p for p in gradients if p.grad is not None).grad.view(-1)[0] = value
        return metrics

    agent.backward = instead
    return before


@every_kind
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_changes_nothing_and_ends_training(
    kind: Any, value: float, dtype: torch.dtype
) -> None:
    """From the third minibatch on: weights and optimizer stay those of the second step; the error says where and what.

    1e30 is finite, and its square, in the norm, is not.
    """
    agent = agent_of(kind)
    agent.policy.cast(dtype)
    before = break_gradients(agent, lambda index: index >= 2, value)
    with pytest.raises(Diverged) as raised:
        agent.learn(FOREVER)
    assert len(before) == 2 + MOST_SKIPPED and same(before[2], state_of(agent)) and not same(before[1], before[2])
    assert all(tensor.isfinite().all() for tensor in state_of(agent))
    message = str(raised.value)
    parts = ("Largest |score|", "' -> '", "learning_rate (0.001)", "max_grad_norm (1)")
    assert all(part in message for part in (f"in update {agent.num_updates + 1}:", *parts)), message


@every_kind
def test_a_single_bad_minibatch_is_left_out_and_counted(kind: Any) -> None:
    """Its step is not taken, all others are; the metrics count it, and all of them are finite."""
    agent = agent_of(kind, **(SEVERAL if hasattr(kind, "n_epochs") else {}), **GROUPS.get(kind, {}))
    before, rows = break_gradients(agent, lambda index: index == 1), list[dict[str, float]]()
    agent.learn(FOREVER, callback=lambda agent, rollout, metrics: rows.append(metrics) or len(before) < 8)
    changed = [not same(*pair) for pair in pairwise(before)]
    assert changed == [index != 1 for index in range(len(before) - 1)]
    assert sum(row["num_skipped_steps"] for row in rows) == 1
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all("grad_norm" in row and "loss/policy_avg" in row for row in rows[2:])


def test_bad_minibatches_must_be_in_a_row_to_end_training() -> None:
    """Every second one, many times: training continues."""
    agent = agent_of(REINFORCE)
    before = break_gradients(agent, lambda index: index % 2 == 1)
    agent.learn(FOREVER, callback=lambda agent, rollout, metrics: len(before) < 4 * MOST_SKIPPED)
    assert agent.num_updates == 4 * MOST_SKIPPED


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("raised", [True, False])
def test_minibatches_of_an_earlier_training_are_not_in_a_row(raised: bool, reset: bool) -> None:
    """Training ends with `Diverged`, or one bad minibatch earlier: the next bad one is the first of a new training.

    Control: where the earlier training continues, it is the last of its row.
    """
    agent = agent_of(REINFORCE)
    bad = MOST_SKIPPED if raised else MOST_SKIPPED - 1
    before = break_gradients(agent, lambda index: index <= bad)
    if raised:
        with pytest.raises(Diverged, match=f"of {MOST_SKIPPED} minibatches in a row"):
            agent.learn(FOREVER)
        assert agent.step_guard._rollout is None
    else:
        agent.learn(FOREVER, callback=lambda *_: len(before) < bad)
    assert len(before) == bad

    def go_on() -> None:
        agent.learn(FOREVER, callback=lambda *_: len(before) < bad + 3, reset_num_timesteps=reset)

    if raised or reset:
        go_on()
        assert len(before) == bad + 3
    else:
        with pytest.raises(Diverged, match=f"of {MOST_SKIPPED} minibatches in a row"):
            go_on()


@pytest.mark.parametrize("loss", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_stops_a_step_with_a_finite_gradient(
    loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has the losses. Control: a metric that is no loss, and the same gradient with a finite loss."""
    monkeypatch.setitem(METRICS, "mine", Metric(is_loss=True))
    agent, guard = agent_of(REINFORCE), StepGuard()
    for metrics, passes in [
        ({"loss/policy_avg": 1.0, "loss/value_avg": loss}, False),
        ({"loss/policy_avg": 1.0, "val/ess": math.nan}, True),
        ({"loss/policy_avg": 1.0, "mine": loss}, False),
        ({"loss/policy_avg": 1.0, "my/loss": loss}, True),
        ({}, True),
    ]:
        guard.watch(agent.collect(), torch.arange(2), metrics)
        assert guard.passes(agent, 1.0) is passes
    assert guard.skipped == 2 and guard.in_a_row == 0


@every_kind
def test_scores_that_are_too_large_end_training(kind: Any) -> None:
    """A score of 1e20 for one completion: the error shows it, and advises to scale. GRPO's advantages have no scale."""

    def huge(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [1e20 if len(completion) > 3 else 0.5 for completion in completions]

    agent = agent_of(kind, task(reward=huge), **GROUPS.get(kind, {}))
    start = state_of(agent)
    if kind is GRPO:
        agent.learn(FOREVER, callback=lambda agent, rollout, metrics: agent.num_updates < 3)
        assert not same(start, state_of(agent)) and all(tensor.isfinite().all() for tensor in state_of(agent))
        return
    with pytest.raises(
        Diverged, match=r"(?s)Largest \|score\|: 1e\+20.*' -> '.* \(score 1e\+20.*Scale the scores down"
    ):
        agent.learn(FOREVER)
    moments = {name for each in agent.optimization.optimizer.state.values() for name in each}
    if kind is PathConsistency:  # a step is skipped in an update, and rollouts between may be without such scores
        assert all(tensor.isfinite().all() for tensor in state_of(agent))
    else:
        assert same(start, state_of(agent)) and not moments
    agent_of(kind, task()).learn(FOREVER, callback=lambda *_: False)  # control


@every_kind
def test_an_absurd_learning_rate_ends_training(kind: Any) -> None:
    """After the first step the policy cannot sample: the error has the update, a prompt and the setting."""
    with pytest.raises(Diverged, match=r"(?s)in update [12].*learning_rate \(1e\+12\)"):
        agent_of(kind, learning_rate=1e12).learn(FOREVER, callback=lambda agent, *_: agent.num_updates < 9)


def broken_policy(env: Any) -> Any:
    """A policy in float32 with one weight that is nan."""
    policy = random_policy(env).float()
    with torch.no_grad():
        policy.model.lm_head.weight[0, 0] = torch.nan
    return policy


@pytest.mark.parametrize("make", [toy, sparse, lambda: task()], ids=["no masks", "masks", "masks and lengths"])
@pytest.mark.parametrize("sampler", [sample, generate_sampler, GraphSampler()], ids=["loop", "generate", "graph"])
@pytest.mark.usefixtures("uncompiled")
def test_no_sampler_shows_torchs_own_error(make: Any, sampler: Any) -> None:
    """Probabilities that are nan: the error is ours, the reward is not called. Control: a policy that is finite."""
    env = make()
    mdp = env.unwrapped.mdp
    collect(env, random_policy(env).float(), 16, sampler=sampler)
    mdp.reward = None  # not callable
    with pytest.raises(Diverged, match=r"probabilities are not finite in \d+ of 16 completions, first at token .* '"):
        collect(env, broken_policy(env), 16, generator=new_generator("cpu", 0), sampler=sampler)


@pytest.mark.parametrize("deterministic", [False, True])
def test_predict_does_not_choose_among_nan(deterministic: bool) -> None:
    """Neither the likeliest nor a sampled token."""
    env = toy()
    observation, _ = env.reset(seed=0)
    PPO(random_policy(env).float(), env).predict(observation, deterministic=deterministic)
    with pytest.raises(Diverged, match="probabilities are not finite"):
        PPO(broken_policy(env), env).predict(observation, deterministic=deterministic)


@pytest.mark.parametrize("name", ["model.lm_head.weight", "model.transformer.wte.weight", "value_head.bias"])
def test_a_policy_that_is_not_finite_is_not_worth_saving(name: str) -> None:
    """One weight, also of the value head, or weights that are finite and overflow. Control: a good policy."""
    env = task()
    policy = random_policy(env).float()
    mdp = env.unwrapped.mdp
    check_finite(policy, mdp)
    wrong = copy.deepcopy(policy)
    with torch.no_grad():
        dict(wrong.named_parameters(remove_duplicate=False))[name].view(-1)[-1] = torch.nan
    with pytest.raises(Diverged, match="weights that are not finite"):
        check_finite(wrong, mdp)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter *= 1e20
    with pytest.raises(Diverged, match="probabilities are not finite after '"):
        check_finite(policy, mdp)


def test_ranks_decide_alike() -> None:
    """The rewards of one rank are infinite: both ranks leave out the steps, and stop together, with its completion."""

    def train(rank: int) -> tuple[str, list[Tensor]]:
        agent = agent_of(ActorCritic, n_episodes=16)
        collect_own = agent.collect

        def spoiled() -> Any:
            rollout = collect_own()
            if rank == 1:
                rollout.rewards[0, 0], rollout.completions[0] = 3e38, "the culprit"
            return rollout

        agent.collect = spoiled
        start = state_of(agent)
        with pytest.raises(Diverged) as raised:
            agent.learn(FOREVER)
        assert same(start, state_of(agent)[: len(start)])
        return str(raised.value), start

    (first, start), (second, other) = on_threads(train)
    assert first == second and "in update 5" in first and same(start, other)


def test_a_metric_that_does_not_exist_is_left_out() -> None:
    """The explained variance where all returns are equal; elsewhere it is there."""

    def constant(prompts: Any, **_: Any) -> list[float]:
        return [1.0] * len(prompts)

    def metrics(**arguments: Any) -> dict[str, float]:
        rows: list[dict[str, float]] = []
        env = task(**arguments)
        agent_of(PPO, env).learn(1, callback=lambda agent, rollout, metrics: rows.append(metrics))
        return rows[0]

    assert "val/explained_variance" in metrics()
    equal = metrics(reward=constant, kl_coef=0.0)
    assert "val/explained_variance" not in equal and all(map(math.isfinite, equal.values()))


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (PPO, {"clip_range": None}, r"lower learning_rate \(0\.001\), .*, n_epochs \(4\); set clip_range\.$"),
        (PPO, {}, r"lower learning_rate \(0\.001\), .*, n_epochs \(4\), clip_range \(0\.2\)\.$"),
        (REINFORCE, {}, r"lower learning_rate \(0\.001\), max_grad_norm \(1\)\.$"),
    ],
)
def test_the_advice_names_the_settings_of_the_agent(kind: Any, settings: dict[str, Any], expected: str) -> None:
    """Those that it has, with their values; a clip that there is none of is to be set and not lowered."""
    assert re.search(expected, advice(agent_of(kind, **settings)))


def test_texts_of_the_error_cannot_command_the_terminal() -> None:
    """Control characters are escaped, long texts are cut."""
    assert abridge("a\x1b[31mb\nc") == r"'a\x1b[31mb\nc'"
    assert len(abridge("x" * 10_000)) < 200
