"""Exact expected gradients of small tasks, by enumeration of every completion with its probability.

J is computed here from single steps of the environment, and differentiated by autograd. An agent's gradient is the one
that its `train` leaves in `.grad`, completion by completion (learning rate 0, no clipping of the norm).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.policy import TransformerPolicy
from agents.sampling import Rollout
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


def completions(env: Any, prompt: int, start: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Every completion of a prompt that the action masks allow."""
    _, info = env.reset(options={"prompt": prompt, "completion": list(start)})
    found = []
    for token in np.flatnonzero(info["action_mask"]).tolist():
        env.reset(options={"prompt": prompt, "completion": list(start)})
        terminated = env.step(token)[2]
        found += [(*start, token)] if terminated else completions(env, prompt, (*start, token))
    return found


def objective(env: Any, policy: TransformerPolicy) -> Tensor:
    """J = mean over prompts of sum_y pi(y|x) (score + shaping - beta log(pi(y|x) / pi_ref(y|x))), with gradient."""
    beta, total = env.unwrapped.mdp.kl_coef, torch.zeros((), dtype=torch.float64)
    for prompt in range(len(env.unwrapped.prompts)):
        for completion in completions(env, prompt):
            observation, info = env.reset(options={"prompt": prompt})
            log_prob, reward, ref_log_prob = torch.zeros((), dtype=torch.float64), 0.0, 0.0
            for token in completion:
                logits = policy.next_token_logits(*(observation[name][None] for name in observation))[0].double()
                allowed = torch.as_tensor(info["action_mask"]) == 1
                log_prob = log_prob + logits[token] - logits[allowed].logsumexp(dim=0)
                observation, step_reward, _, _, info = env.step(token)
                ref_log_prob += info["ref_log_prob"]
                reward += step_reward - beta * info["ref_log_prob"]  # without the KL term of an unbound environment
            total = total + log_prob.exp() * (reward - beta * (log_prob - ref_log_prob))
    return total / len(env.unwrapped.prompts)


def exact_gradient(env: Any, policy: TransformerPolicy) -> Tensor:
    """The gradient of J by the model's parameters, in one vector."""
    parameters = list(policy.model.parameters())
    return flat(torch.autograd.grad(objective(env, policy), parameters))


def flat(gradients: Iterable[Tensor]) -> Tensor:
    """Gradients as one vector in float64."""
    return torch.cat([gradient.double().reshape(-1) for gradient in gradients])


def error(found: Tensor, expected: Tensor) -> float:
    """The relative error of a gradient."""
    return float((found - expected).norm() / expected.norm())


class Case:
    """A task, a policy, all completions as one rollout (by single steps of the bound environment), and pi(y|x)."""

    def __init__(self, task: str, seed: int = 0, **settings: Any) -> None:
        self.env = make(TASKS[task])
        self.policy = random_policy(self.env, seed, **settings)
        self.gradient = exact_gradient(self.env, self.policy)
        self.rollout = all_completions(self.env, self.policy)
        self.probability = self.rollout.log_probs.double().sum(dim=1).exp()

    def pairs(self, same_prompt: bool) -> list[tuple[float, list[int]]]:
        """Two independent completions, of one prompt or of any, unordered: `(probability, rows)`."""
        prompts, found = len(self.env.unwrapped.prompts), []
        for i, j in itertools.combinations_with_replacement(range(len(self.rollout)), 2):
            joint = float(self.probability[i] * self.probability[j]) * (1 if i == j else 2)
            if not same_prompt:
                found.append((joint / prompts**2, [i, j]))
            elif self.rollout.prompt[i] == self.rollout.prompt[j]:
                found.append((joint / prompts, [i, j]))
        return found

    def singles(self) -> list[tuple[float, list[int]]]:
        """One completion: `(probability, rows)`."""
        prompts = len(self.env.unwrapped.prompts)
        return [(float(p) / prompts, [i]) for i, p in enumerate(self.probability)]

    def expected(self, agent: Any, batches: list[tuple[float, list[int]]], rollout: Rollout | None = None) -> Tensor:
        """The expectation over these batches of the gradient of J that `agent.train` estimates."""
        rollout = self.rollout if rollout is None else rollout
        total = torch.zeros_like(self.gradient)
        for probability, rows in batches:
            total += probability * step_gradient(agent, rollout[torch.tensor(rows)])
        return total


def all_completions(env: Any, policy: TransformerPolicy) -> Rollout:
    """Every completion of the task as a row, with rewards from single steps of the bound environment."""
    tree, mdp = exact.enumerate_tree(env), env.unwrapped.mdp
    env.unwrapped.bind_policy(policy)
    rows: dict[str, list[Any]] = {name: [] for name in ("prompt", "ids", "mask", "rewards", "ref", "allowed", "score")}
    for state, action in zip(*tree.leaves(), strict=True):
        completion = [*(int(token) for token in tree.tokens[state] if token >= 0), int(action)]
        padding = mdp.max_new_tokens - len(completion)
        episode = play(env, int(tree.prompt[state]), completion)
        allowed = np.ones((mdp.max_new_tokens, mdp.vocab_size), dtype=np.bool_)
        for t in range(len(completion)):
            allowed[t] = env.reset(options={"prompt": int(tree.prompt[state]), "completion": completion[:t]})[1][
                "action_mask"
            ]
        rows["prompt"].append(int(tree.prompt[state]))
        rows["ids"].append(completion + [0] * padding)
        rows["mask"].append([True] * len(completion) + [False] * padding)
        rows["rewards"].append([*episode.rewards, *[0.0] * padding])
        rows["ref"].append([*episode.ref_log_probs, *[0.0] * padding])
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
    """An agent whose `train` does not change the weights, and leaves its gradient in `.grad`."""
    return kind(policy, env, learning_rate=0.0, max_grad_norm=float("inf"), seed=0, **settings)


def step_gradient(agent: Any, rollout: Rollout) -> Tensor:
    """The gradient of J by the model's parameters that `train` estimates from a batch."""
    agent.train(rollout)
    parameters = agent.policy.model.parameters()
    return -flat(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)


def along(tree: exact.Tree, rollout: Rollout, value: Callable[[int, int], float]) -> Tensor:
    """`value(state, action)` at every token of the rollout, [B, T]; 0 at padding."""
    found = torch.zeros(rollout.mask.shape)
    for row, t in torch.nonzero(rollout.mask).tolist():
        prefix = rollout.tokens[row, :t].numpy()
        state = tree.state_index(rollout.prompts[row], prefix)
        found[row, t] = value(state, int(rollout.tokens[row, t]))
    return found
