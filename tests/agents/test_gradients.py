"""Every agent's expected gradient is the gradient of J: all texts of a small task, each weighted by its probability.

J is written out here from single steps of the environment and differentiated by autograd; the agents' side is the
gradient that their own `train` leaves behind, text by text (learning rate 0, no clipping of the norm).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic
from agents.functional import clipped_surrogate_loss, value_loss
from agents.policy import TransformerPolicy
from agents.sampling import Rollout, collect, new_generator
from tests.helpers.policies import random_policy
from tests.helpers.tasks import hashed_potential, make, random_reference, words
from textenv import exact
from textenv.shaping import length_penalty, potential_based
from textenv.testing import play

EXACT = 1e-5  # relative error that counts as equal


BROKEN = 1e-2  # relative error that a broken estimator must exceed


TASKS: dict[str, dict[str, Any]] = {
    "full": words(3, prompts=["a", "b a b"], reference=random_reference(3, 1, sparse=False)),
    "sparse": words(4, prompts=["a b", "b"], reference=random_reference(4, 9, sparse=True)),
    "shaped": words(
        3,
        prompts=["b", "b a b"],
        reference=random_reference(3, 2, sparse=False),
        shaping=[length_penalty(0.25), potential_based(hashed_potential)],
    ),
}


def answers(env: Any, prompt: int, start: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Every answer to a prompt that the environment lets one write."""
    _, info = env.reset(options={"prompt": prompt, "completion": list(start)})
    found = []
    for token in np.flatnonzero(info["action_mask"]).tolist():
        env.reset(options={"prompt": prompt, "completion": list(start)})
        terminated = env.step(token)[2]
        found += [(*start, token)] if terminated else answers(env, prompt, (*start, token))
    return found


def objective(env: Any, policy: TransformerPolicy) -> Tensor:
    """J = mean over prompts of sum_y pi(y|x) (score + shaping - beta log(pi(y|x) / pi_ref(y|x))), with gradient."""
    beta, total = env.unwrapped.mdp.kl_coef, torch.zeros((), dtype=torch.float64)
    for prompt in range(len(env.unwrapped.prompts)):
        for answer in answers(env, prompt):
            observation, info = env.reset(options={"prompt": prompt})
            log_prob, reward, ref_log_prob = torch.zeros((), dtype=torch.float64), 0.0, 0.0
            for token in answer:
                logits = policy.next_token_logits(*(observation[name][None] for name in observation))[0].double()
                allowed = torch.as_tensor(info["action_mask"]) == 1
                log_prob = log_prob + logits[token] - logits[allowed].logsumexp(dim=0)
                observation, paid, _, _, info = env.step(token)
                ref_log_prob += info["ref_log_prob"]
                reward += paid - beta * info["ref_log_prob"]  # what an unbound environment pays, without the KL
            total = total + log_prob.exp() * (reward - beta * (log_prob - ref_log_prob))
    return total / len(env.unwrapped.prompts)


def exact_gradient(env: Any, policy: TransformerPolicy) -> Tensor:
    """The gradient of J by the model's parameters, in one vector."""
    parameters = list(policy.model.parameters())
    return flat(torch.autograd.grad(objective(env, policy), parameters))


def flat(gradients: Iterable[Tensor]) -> Tensor:
    """One vector in float64."""
    return torch.cat([gradient.double().reshape(-1) for gradient in gradients])


def error(found: Tensor, expected: Tensor) -> float:
    """The relative error of a gradient."""
    return float((found - expected).norm() / expected.norm())


class Case:
    """A task, a policy, all texts as one rollout (by single steps of the bound environment), and pi(y|x)."""

    def __init__(self, task: str, seed: int = 0, **settings: Any) -> None:
        self.env = make(TASKS[task])
        self.policy = random_policy(self.env, seed, **settings)
        self.gradient = exact_gradient(self.env, self.policy)
        self.rollout = all_texts(self.env, self.policy)
        self.probability = self.rollout.log_probs.double().sum(dim=1).exp()

    def pairs(self, same_prompt: bool) -> list[tuple[float, list[int]]]:
        """Two answers drawn independently, to one prompt or to any: `(probability, rows)`, unordered."""
        prompts, found = len(self.env.unwrapped.prompts), []
        for i, j in itertools.combinations_with_replacement(range(len(self.rollout)), 2):
            together = float(self.probability[i] * self.probability[j]) * (1 if i == j else 2)
            if not same_prompt:
                found.append((together / prompts**2, [i, j]))
            elif self.rollout.prompt[i] == self.rollout.prompt[j]:
                found.append((together / prompts, [i, j]))
        return found

    def singles(self) -> list[tuple[float, list[int]]]:
        """One answer: `(probability, rows)`."""
        prompts = len(self.env.unwrapped.prompts)
        return [(float(p) / prompts, [i]) for i, p in enumerate(self.probability)]

    def expected(self, agent: Any, batches: list[tuple[float, list[int]]], rollout: Rollout | None = None) -> Tensor:
        """The mean of the gradients of J that `agent.train` finds in these batches."""
        rollout = self.rollout if rollout is None else rollout
        total = torch.zeros_like(self.gradient)
        for probability, rows in batches:
            total += probability * step_gradient(agent, rollout[torch.tensor(rows)])
        return total


def all_texts(env: Any, policy: TransformerPolicy) -> Rollout:
    """Every text of the task as a row, paid by single steps of the environment with the policy bound."""
    tree, mdp = exact.enumerate_tree(env), env.unwrapped.mdp
    env.unwrapped.bind_policy(policy)
    rows: dict[str, list[Any]] = {name: [] for name in ("prompt", "ids", "mask", "rewards", "ref", "allowed", "score")}
    for state, action in zip(*tree.leaves(), strict=True):
        answer = [*(int(token) for token in tree.tokens[state] if token >= 0), int(action)]
        missing = mdp.max_new_tokens - len(answer)
        episode = play(env, int(tree.prompt[state]), answer)
        allowed = np.ones((mdp.max_new_tokens, mdp.vocab_size), dtype=np.bool_)
        for t in range(len(answer)):
            allowed[t] = env.reset(options={"prompt": int(tree.prompt[state]), "completion": answer[:t]})[1][
                "action_mask"
            ]
        rows["prompt"].append(int(tree.prompt[state]))
        rows["ids"].append(answer + [0] * missing)
        rows["mask"].append([True] * len(answer) + [False] * missing)
        rows["rewards"].append([*episode.rewards, *[0.0] * missing])
        rows["ref"].append([*episode.ref_log_probs, *[0.0] * missing])
        rows["allowed"].append(allowed)
        rows["score"].append(episode.score)
    env.unwrapped.bind_policy(None)
    prompt, mask = torch.tensor(rows["prompt"]), torch.tensor(rows["mask"])
    prompts = mdp.prompts
    input_ids = torch.cat([torch.as_tensor(prompts.input_ids)[prompt], torch.tensor(rows["ids"])], dim=1)
    attention_mask = torch.cat([torch.as_tensor(prompts.attention_mask)[prompt], mask.to(torch.int8)], dim=1)
    action_mask = torch.as_tensor(np.array(rows["allowed"]))
    with torch.no_grad():
        evaluation = policy.evaluate_actions(input_ids, attention_mask, mask.shape[1], action_mask)
    assert evaluation.values is not None
    return Rollout(
        prompt=prompt,
        input_ids=input_ids,
        attention_mask=attention_mask,
        mask=mask,
        log_probs=torch.where(mask, evaluation.log_probs, 0.0),
        ref_log_probs=torch.tensor(rows["ref"]),
        rewards=torch.tensor(rows["rewards"], dtype=torch.float32),
        scores=torch.tensor(rows["score"]),
        stopped=torch.tensor([mdp.is_eos[row[int(m.sum()) - 1]] for row, m in zip(rows["ids"], mask, strict=True)]),
        values=torch.where(mask, evaluation.values, 0.0),
        action_mask=action_mask,
        prompts=np.array([prompts.texts[i] for i in rows["prompt"]], dtype=object),
        completions=np.array([mdp.decode(row) for row in rows["ids"]], dtype=object),
    )


def frozen(kind: Any, policy: TransformerPolicy, env: Any, **settings: Any) -> Any:
    """An agent whose `train` leaves the weights alone and its whole gradient in `.grad`."""
    return kind(policy, env, learning_rate=0.0, max_grad_norm=float("inf"), seed=0, **settings)


def step_gradient(agent: Any, rollout: Rollout) -> Tensor:
    """The gradient of J, by the model's parameters, that `train` estimates from some answers."""
    agent.train(rollout)
    parameters = agent.policy.model.parameters()
    return -flat(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)


def along(tree: exact.Tree, rollout: Rollout, value: Callable[[int, int], float]) -> Tensor:
    """`value(state, action)` at every token of the rollout, [B, T]; 0 behind the ends."""
    found = torch.zeros(rollout.mask.shape)
    for row, t in torch.nonzero(rollout.mask).tolist():
        answer = rollout.tokens[row, :t].numpy()
        state = tree.state_index(rollout.prompts[row], answer)
        found[row, t] = value(state, int(rollout.tokens[row, t]))
    return found


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """Every task with one policy."""
    return {task: Case(task) for task in TASKS}


@pytest.fixture(params=TASKS)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    """Each task in turn."""
    return cases[request.param]


def test_the_texts_are_all_there(case: Case) -> None:
    """Probabilities of the enumerated texts sum to one a prompt, and their mean return is J."""
    prompts = len(case.env.unwrapped.prompts)
    assert float(case.probability.sum()) == pytest.approx(prompts, abs=1e-5)
    returns = case.rollout.rewards.double().sum(dim=1)
    j = float((case.probability * returns).sum()) / prompts
    assert j == pytest.approx(objective(case.env, case.policy).item(), abs=1e-5)
    assert j == pytest.approx(exact.evaluate(case.env, case.policy).objective, abs=1e-5)


def test_the_two_exact_gradients_agree(case: Case) -> None:
    """`exact.policy_gradient` is autograd through J."""
    found = exact.policy_gradient(case.env, case.policy)
    mine = flat(found[f"model.{name}"] for name, _ in case.policy.model.named_parameters())
    assert error(mine, case.gradient) < EXACT


@pytest.mark.parametrize("credit", ["sequence", "reward_to_go"])
def test_reinforce_has_the_gradient_of_j(case: Case, credit: str) -> None:
    """Without a baseline, from one answer at a time."""
    agent = frozen(REINFORCE, case.policy, case.env, credit=credit, baseline=None)
    assert error(case.expected(agent, case.singles()), case.gradient) < EXACT


@pytest.mark.parametrize("credit", ["sequence", "reward_to_go"])
def test_leave_one_out_changes_no_expectation(case: Case, credit: str) -> None:
    """Over all pairs of answers to the same prompt the baseline cancels."""
    agent = frozen(REINFORCE, case.policy, case.env, credit=credit, baseline="leave_one_out", num_generations=2)
    assert error(case.expected(agent, case.pairs(same_prompt=True)), case.gradient) < EXACT


@pytest.mark.parametrize("same_prompt", [False, True])
@pytest.mark.parametrize("credit", ["sequence", "reward_to_go"])
def test_the_mean_baseline_shrinks_the_gradient_by_one_nth(
    cases: dict[str, Case], credit: str, same_prompt: bool
) -> None:
    """An answer that counts in its own baseline costs the factor 1 - 1/N: a half for two, as `batch_mean` says."""
    case = cases["full"]
    agent = frozen(REINFORCE, case.policy, case.env, credit=credit, baseline="mean", num_generations=2)
    found = case.expected(agent, case.pairs(same_prompt))
    assert error(found, case.gradient / 2) < EXACT
    assert error(found, case.gradient) > BROKEN


@pytest.mark.parametrize(("baseline", "factor"), [(None, 1.0), ("leave_one_out", 1.0), ("mean", 0.5)])
def test_exact_q_values_give_the_exact_gradient(case: Case, baseline: str | None, factor: float) -> None:
    """credit="q" with the true Q in place of its estimate."""
    known = exact.evaluate(case.env, case.policy)
    q_values = along(known.tree, case.rollout, lambda state, action: known.q_values[state, action])

    class Oracle(REINFORCE):
        def q_values(self, rollout: Rollout) -> Tensor:
            return rollout.values  # where this test puts them

    agent = frozen(Oracle, case.policy, case.env, credit="q", baseline=baseline, num_generations=2)
    batches = case.pairs(same_prompt=True) if baseline else case.singles()
    if baseline is None:
        agent.num_generations = 1
    found = case.expected(agent, batches, replace(case.rollout, values=q_values))
    assert error(found, factor * case.gradient) < EXACT


def test_q_values_converge_to_q(case: Case) -> None:
    """Means over many continuations are within Hoeffding's bound of the exact Q (false failure: 1e-9)."""
    copies, known = 400, exact.evaluate(case.env, case.policy)
    agent = frozen(REINFORCE, case.policy, case.env, credit="q", num_continuations=copies, num_generations=2)
    expected = along(known.tree, case.rollout, lambda state, action: known.q_values[state, action])
    found, mask = agent.q_values(case.rollout), case.rollout.mask

    to_go = case.rollout.rewards.flip(1).cumsum(dim=1).flip(1)[mask]  # every return that any state can have
    spread = float(to_go.max() - to_go.min())
    bound = spread * np.sqrt(np.log(2 * int(mask.sum()) / 1e-9) / (2 * copies))
    gap = (found - expected).abs()[mask]
    assert gap.max() < bound

    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    assert torch.allclose(found[last], case.rollout.rewards[last])  # nothing comes after the last token
    value = along(known.tree, case.rollout, lambda state, action: known.values[state])
    assert (found - value).abs()[mask].max() > 2 * bound  # control: the bound tells Q from V


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_actor_critic_with_the_true_v_has_the_gradient_of_j(case: Case, gae_lambda: float) -> None:
    """With V exact, every lambda is unbiased."""
    known = exact.evaluate(case.env, case.policy)
    values = along(known.tree, case.rollout, lambda state, action: known.values[state])
    agent = frozen(ActorCritic, case.policy, case.env, gae_lambda=gae_lambda, vf_coef=0.0)
    found = case.expected(agent, case.singles(), replace(case.rollout, values=values))
    assert error(found, case.gradient) < EXACT


def test_a_wrong_v_is_forgiven_by_lambda_one_alone(case: Case) -> None:
    """With an arbitrary V, lambda = 1 stays unbiased; lambda = 0 (the control) trusts it and is wrong."""
    found = {
        gae_lambda: case.expected(
            frozen(ActorCritic, case.policy, case.env, gae_lambda=gae_lambda, vf_coef=0.0), case.singles()
        )
        for gae_lambda in (0.0, 0.95, 1.0)
    }
    assert error(found[1.0], case.gradient) < EXACT
    assert error(found[0.0], case.gradient) > error(found[0.95], case.gradient) > BROKEN


def test_the_value_loss_is_least_at_the_true_v(case: Case) -> None:
    """Its expected gradient by V(s) is zero at the exact V of every state, and nowhere near it elsewhere."""
    known = exact.evaluate(case.env, case.policy)
    state = along(known.tree, case.rollout, lambda state, action: state).long()
    returns = case.rollout.rewards.flip(1).cumsum(dim=1).flip(1).double()
    for shift, solved in ((0.0, True), (0.1, False)):
        v = (torch.as_tensor(known.values) + shift).requires_grad_()
        each = [
            float(p) * value_loss(v[state[i : i + 1]], returns[i : i + 1], case.rollout.mask[i : i + 1])
            for i, p in enumerate(case.probability)
        ]
        torch.stack(each).sum().backward()
        assert v.grad is not None
        assert (v.grad.abs().max() < 1e-5) == solved


@pytest.mark.parametrize("clip_range", [0.2, None])
@pytest.mark.parametrize("separate_critic", [False, True])
@pytest.mark.parametrize("task", ["full", "sparse"])
def test_ppos_first_gradient_is_actor_critics(task: str, separate_critic: bool, clip_range: float | None) -> None:
    """On the same answers, value loss included, dropout configured and asked for: ratio 1, and the same gradient."""
    env = make(TASKS[task])
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    policy = random_policy(env, 3, separate_critic=separate_critic, **dropout)
    assert policy.train() is policy
    rollout = collect(env, policy, 16, generator=new_generator("cpu", 0))
    ppo = frozen(PPO, policy, env, n_epochs=1, clip_range=clip_range)
    actor_critic = frozen(ActorCritic, policy, env)
    assert ppo.vf_coef == actor_critic.vf_coef > 0
    metrics = ppo.train(rollout)
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    assert metrics["val/ratio"] == pytest.approx(1.0, abs=1e-5) and metrics["val/ratio_error_max"] < 1e-5
    assert metrics["policy/clipfrac_avg"] == 0.0
    actor_critic.train(rollout)
    expected = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert error(flat(found.values()), flat(expected[name] for name in found)) < EXACT


def test_dropout_in_the_update_would_show() -> None:
    """Control: with the modules really in training mode the ratio is not 1."""
    env = make(TASKS["full"])
    policy = random_policy(env, 3, resid_pdrop=0.5)
    rollout = collect(env, policy, 16, generator=new_generator("cpu", 0))
    torch.nn.Module.train(policy, True)
    with torch.random.fork_rng(devices=[]):
        assert frozen(PPO, policy, env, n_epochs=1).train(rollout)["val/ratio_error_max"] > BROKEN


@pytest.mark.parametrize("clip_range", [0.2, None])
def test_ppo_with_the_true_v_has_the_gradient_of_j(case: Case, clip_range: float | None) -> None:
    """The first minibatch's expected gradient is that of J."""
    known = exact.evaluate(case.env, case.policy)
    values = along(known.tree, case.rollout, lambda state, action: known.values[state])
    agent = frozen(PPO, case.policy, case.env, n_epochs=1, clip_range=clip_range, vf_coef=0.0)
    found = case.expected(agent, case.singles(), replace(case.rollout, values=values))
    assert error(found, case.gradient) < EXACT


def test_importance_weights_make_another_policys_answers_count() -> None:
    """One token, no KL: answers of an old policy give the new one's exact gradient; a tight clip cuts it (control)."""
    env = make(words(4, reference=random_reference(4, 1, sparse=False), max_new_tokens=1, kl_coef=0.0))
    old, new = random_policy(env, 1), random_policy(env, 2)
    rollout = all_texts(env, old)
    expected = exact_gradient(env, new)
    probability = rollout.log_probs.double().exp()[:, 0] / len(env.unwrapped.prompts)
    found = {}
    for clip_range in (None, 0.05):
        agent = frozen(PPO, new, env, n_epochs=1, clip_range=clip_range, vf_coef=0.0)
        gradients = [step_gradient(agent, rollout[i : i + 1]) for i in range(len(rollout))]
        found[clip_range] = sum(float(p) * g for p, g in zip(probability, gradients, strict=True))
    assert error(found[None], expected) < EXACT
    assert error(found[0.05], expected) > BROKEN


def test_rloo_has_the_gradient_of_j(case: Case) -> None:
    """Over all pairs of answers to the same prompt, and answer by answer that of REINFORCE with the same credit."""
    agent = frozen(RLOO, case.policy, case.env, num_generations=2)
    assert error(case.expected(agent, case.pairs(same_prompt=True)), case.gradient) < EXACT
    same = frozen(REINFORCE, case.policy, case.env, credit="sequence", baseline="leave_one_out", num_generations=2)
    rows = torch.tensor(case.pairs(same_prompt=True)[1][1])
    assert error(step_gradient(agent, case.rollout[rows]), step_gradient(same, case.rollout[rows])) < EXACT


@pytest.mark.parametrize("task", ["full", "sparse"])
def test_a_weight_an_answer_makes_old_answers_count(task: str) -> None:
    """RLOO without a clip is unbiased on an old policy's answers of several tokens; a weight a token is not."""
    env = make(TASKS[task] | {"kl_coef": 0.0})
    old, new = random_policy(env, 1), random_policy(env, 2)
    case = Case(task)
    case.rollout = all_texts(env, old)
    case.probability = case.rollout.log_probs.double().sum(dim=1).exp()
    case.env, expected = env, exact_gradient(env, new)
    pairs = case.pairs(same_prompt=True)
    settings = {"num_generations": 2, "n_epochs": 1}
    assert error(case.expected(frozen(RLOO, new, env, clip_range=None, **settings), pairs), expected) < EXACT
    assert error(case.expected(frozen(RLOO, new, env, clip_range=0.2, **settings), pairs), expected) > BROKEN
    by_token = frozen(GRPO, new, env, clip_range=None, clip_range_high=None, scale_rewards=False, **settings)
    assert error(2 * case.expected(by_token, pairs), expected) > BROKEN


def test_grpo_without_the_scale_has_the_gradient_of_j_but_for_one_kth(case: Case) -> None:
    """Its mean counts the answer itself: the factor 1 - 1/K, a half for two. With the scale it is another objective."""
    pairs = case.pairs(same_prompt=True)
    settings = {"num_generations": 2, "n_epochs": 1}
    plain = case.expected(frozen(GRPO, case.policy, case.env, scale_rewards=False, **settings), pairs)
    assert error(plain, case.gradient / 2) < EXACT
    scaled = case.expected(frozen(GRPO, case.policy, case.env, **settings), pairs)
    best = (scaled @ case.gradient) / (scaled @ scaled)
    assert error(best * scaled, case.gradient) > BROKEN


def test_the_higher_clip_lets_good_tokens_rise_further() -> None:
    """Between 1 + eps and 1 + eps_high a token with A > 0 has a gradient; below 1 - eps one with A < 0 has none."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    for rho, advantage, high, moves in [
        (1.25, 1.0, None, False),
        (1.25, 1.0, 0.28, True),
        (1.29, 1.0, 0.28, False),
        (0.79, -1.0, 0.28, False),
        (0.79, 1.0, 0.28, True),
        (1.29, -1.0, 0.28, True),
    ]:
        log_probs = torch.tensor([[rho]]).log().requires_grad_()
        weight = torch.tensor([[advantage]])
        loss, _ = clipped_surrogate_loss(log_probs, torch.zeros(1, 1), weight, mask, 0.2, high)
        (gradient,) = torch.autograd.grad(loss, log_probs)
        assert (gradient != 0).item() is moves


def no_end_token(case: Case, rollout: Rollout) -> Rollout:
    """The end token is masked out of loss and reward, as where pad == eos; answers of nothing else keep theirs."""
    ends = torch.as_tensor(case.env.unwrapped.mdp.is_eos)[rollout.tokens] & (rollout.mask.sum(dim=1) > 1)[:, None]
    return replace(rollout, mask=rollout.mask & ~ends)


def no_kl(case: Case, rollout: Rollout) -> Rollout:
    """The KL is forgotten."""
    beta = case.env.unwrapped.mdp.kl_coef
    return replace(rollout, rewards=rollout.rewards + beta * (rollout.log_probs - rollout.ref_log_probs))


def other_temperature(case: Case, rollout: Rollout) -> Rollout:
    """The KL is that of logits without the temperature that sampled."""
    hot = TransformerPolicy(case.policy.model, temperature=2.0)
    with torch.no_grad():
        log_probs = hot.evaluate_actions(
            rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask
        ).log_probs
    beta = case.env.unwrapped.mdp.kl_coef
    change = torch.where(rollout.mask, log_probs - rollout.log_probs, 0.0)
    return replace(rollout, rewards=rollout.rewards - beta * change)


def shifted_mask(case: Case, rollout: Rollout) -> Rollout:
    """The mask stands one column to the right."""
    return replace(rollout, mask=torch.nn.functional.pad(rollout.mask[:, :-1], (1, 0)))


def late_reward(case: Case, rollout: Rollout) -> Rollout:
    """Rewards stand one column to the right; the last one is lost."""
    return replace(rollout, rewards=torch.nn.functional.pad(rollout.rewards[:, :-1], (1, 0)))


def no_action_mask(case: Case, rollout: Rollout) -> Rollout:
    """The update forgets which tokens were allowed."""
    return replace(rollout, action_mask=None)


@pytest.mark.parametrize("kind", [REINFORCE, ActorCritic, PPO])
@pytest.mark.parametrize(
    "mistake",
    [no_end_token, no_kl, other_temperature, shifted_mask, late_reward, no_action_mask],
    ids=lambda f: f.__name__,
)
def test_a_mistake_is_seen(cases: dict[str, Case], mistake: Callable[[Case, Rollout], Rollout], kind: Any) -> None:
    """Each of the usual mistakes moves the expected gradient by more than a percent."""
    case = cases["sparse" if mistake is no_action_mask else "full"]
    settings = {"baseline": None} if kind is REINFORCE else {"gae_lambda": 1.0, "vf_coef": 0.0}
    settings |= {"n_epochs": 1} if kind is PPO else {}
    agent = frozen(kind, case.policy, case.env, **settings)
    assert error(case.expected(agent, case.singles()), case.gradient) < EXACT
    assert error(case.expected(agent, case.singles(), mistake(case, case.rollout)), case.gradient) > BROKEN


def test_an_update_at_another_temperature_is_seen(cases: dict[str, Case]) -> None:
    """Sampled at temperature 1, differentiated at 2: not the gradient."""
    case = cases["full"]
    hot = TransformerPolicy(case.policy.model, temperature=2.0)
    agent = frozen(REINFORCE, hot, case.env, baseline=None)
    assert error(case.expected(agent, case.singles()), case.gradient) > BROKEN


def test_temperature_is_part_of_the_policy() -> None:
    """At temperature 2 all through, the expected gradient is that of J at temperature 2."""
    case = Case("sparse", 5, temperature=2.0)
    cold = TransformerPolicy(case.policy.model)
    assert error(exact_gradient(case.env, cold), case.gradient) > BROKEN
    for agent in (
        frozen(REINFORCE, case.policy, case.env, baseline=None),
        frozen(ActorCritic, case.policy, case.env, gae_lambda=1.0, vf_coef=0.0),
        frozen(PPO, case.policy, case.env, gae_lambda=1.0, vf_coef=0.0, n_epochs=1),
    ):
        assert error(case.expected(agent, case.singles()), case.gradient) < EXACT


def test_a_wide_batch_is_the_mean_of_its_answers(case: Case) -> None:
    """The gradient of a batch is the mean of the gradients of its answers, whatever their lengths."""
    agent = frozen(REINFORCE, case.policy, case.env, baseline=None)
    rows = torch.arange(len(case.rollout))
    each = [step_gradient(agent, case.rollout[rows[i : i + 1]]) for i in rows.tolist()]
    assert error(step_gradient(agent, case.rollout), torch.stack(each).mean(dim=0)) < EXACT
