"""`samples/UPDATE.jsonl` of a trial: some completions at each evaluation, with every number of every token.

They are output alone: nothing reads them to resume. A row is a completion. Its lists have a number for each token:

    log_prob, ref_log_prob, entropy     log pi(a_t|s_t), log pi_ref(a_t|s_t), the entropy of pi(.|s_t)
    reward_terms                        by name, see `TextMDP.reward_terms`; their sum is r_t
    value, advantage                    V(s_t) and GAE of an agent that trains V; others have none. They are of the
                                        rewards that it trains on: with kl_target, of the beta of now
    exact                               what `textenv.exact` computes, where the task is enumerated

With the text, a row has what else reward functions get, so that another reward can score it later (`rescore`):
`columns`, the further fields of its prompt, but for those that JSON has no form for; and `messages`, where the prompt
is a conversation.

`exact` has V and A of the policy, V* and Q*, and two costs: `cost`, whose sum over a completion has the mean J* - J
where prompts are drawn uniformly, and `state_cost`, the part of J* - J in the state s_t (`suboptimality_by_state`).

    cost_t = V*(s_t) - Q*(s_t, a_t) + beta log(pi(a_t|s_t) / pi_ref(a_t|s_t))      (= beta log(pi / pi*), beta > 0)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents import Agent, files
from agents.files import JsonObject
from agents.functional import gae
from agents.sampling import Rollout, collect, new_generator
from experiments.evaluation import EVAL_SEED, Evaluator
from experiments.library_agent import LibraryAgent
from textenv import TextMDP, TextState, exact, get_mdp
from textenv.data import messages_of

SAMPLES = "samples"
DIGITS = 6  # after the point, of every number


def write_samples(
    folder: Path, evaluator: Evaluator, agent: Agent | LibraryAgent, count: int, known: exact.Evaluation | None
) -> None:
    """Samples completions of an agent's policy and writes them to `samples/UPDATE.jsonl`.

    Args:
        folder: the trial's folder.
        evaluator: has the environment, and the solution where the task is enumerated.
        agent: the agent; every call samples for the same prompts.
        count: completions.
        known: the exact evaluation of its policy, None where the task is not enumerated.
    """
    counts = {"num_updates": agent.num_updates, "num_timesteps": agent.num_timesteps}
    rows = [counts | row for row in sample_tokens(evaluator, agent, count, known)]
    with files.storage_errors("make", folder / SAMPLES):
        (folder / SAMPLES).mkdir(exist_ok=True)
    lines = (json.dumps(files.finite(row), allow_nan=False, ensure_ascii=True) + "\n" for row in rows)
    files.write_text(folder / SAMPLES / f"{agent.num_updates}.jsonl", "".join(lines))


def drop_samples_after(folder: Path, num_updates: int) -> None:
    """Removes the samples of later updates, which a trial that resumes repeats."""
    for update, path in sample_files(folder):
        if update > num_updates:
            files.remove(path)


def sample_files(folder: Path) -> list[tuple[int, Path]]:
    """The updates that have samples, with their files, in their order."""
    paths = [path for path in (folder / SAMPLES).glob("*.jsonl") if path.stem.isdecimal() and path.stem.isascii()]
    return sorted((int(path.stem), path) for path in paths)


@torch.no_grad()
def sample_tokens(
    evaluator: Evaluator, agent: Agent | LibraryAgent, count: int, known: exact.Evaluation | None
) -> list[JsonObject]:
    """Samples completions and returns a row for each, without the counts; see this file's docstring."""
    mdp, policy = get_mdp(evaluator.env), agent.policy
    start = _start(mdp, count)
    rollout = collect(
        evaluator.env, policy, generator=new_generator(policy.device, EVAL_SEED), values=agent.needs_values, start=start
    )
    inputs = (rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask)
    all_log_probs = policy.evaluate_all_actions(*inputs, values=False).all_log_probs
    entropy = -torch.where(all_log_probs > -torch.inf, all_log_probs.exp() * all_log_probs, 0.0).sum(dim=-1)
    columns = {"log_prob": rollout.log_probs, "ref_log_prob": rollout.ref_log_probs, "entropy": entropy}
    if rollout.values is not None:
        columns["value"] = rollout.values
        if (advantages := _advantages(agent, rollout, mdp.kl_coef)) is not None:
            columns["advantage"] = advantages
    terms = _reward_terms(mdp, start, rollout)
    solution = evaluator.solution
    costs = None if solution is None or known is None else exact.suboptimality_by_state(solution, known)
    lengths = rollout.mask.sum(dim=1) if rollout.lengths is None else rollout.lengths
    fields = mdp.prompts.columns_of(rollout.prompt.tolist())
    rows: list[JsonObject] = []
    for i, length in enumerate(lengths.tolist()):
        ids: list[int] = rollout.tokens[i, :length].tolist()
        row: JsonObject = {
            "prompt": rollout.prompts[i],
            "completion": rollout.completions[i],
            "token_ids": ids,
            "tokens": token_texts(mdp, ids),
            "stopped": bool(rollout.stopped[i]),
            "score": _plain(rollout.scores[i : i + 1])[0],
            "columns": {name: values[i] for name, values in fields.items() if _is_json(values[i])},
        }
        if (messages := messages_of(rollout.prompts[i])) is not None:
            row["messages"] = messages
        if bool(rollout.valid[i]):  # else its reward failed
            row |= {name: _plain(values[i, :length]) for name, values in columns.items()}
            row["reward_terms"] = {name: _plain(values[i, :length]) for name, values in terms.items()}
            if solution is not None and known is not None and costs is not None:
                row["exact"] = exact_columns(solution, known, costs, int(rollout.prompt[i]), ids)
        rows.append(row)
    return rows


def _start(mdp: TextMDP, count: int) -> TextState:
    """The initial states of prompts spread evenly over the task's; several of each where there are fewer."""
    total = len(mdp.prompts.texts)
    prompts = np.sort(np.resize(np.linspace(0, total, min(count, total), endpoint=False).astype(int), count))
    start = mdp.empty_state(count)
    mdp.reset_rows(start, np.arange(count), prompts)
    return start


def _advantages(agent: Agent | LibraryAgent, rollout: Rollout, kl_coef: float) -> Tensor | None:
    """GAE of the rewards that an agent trains on, with its gamma and lambda, not whitened; None for one without.

    Args:
        agent: the agent. Those rewards are without the KL where it is in the loss, and have the agent's own beta where
            that is adapted.
        rollout: the completions.
        kl_coef: the task's beta, which their rewards have.
    """
    gae_lambda = getattr(agent, "gae_lambda", None)
    if rollout.values is None or gae_lambda is None:
        return None
    rewards, gamma = rollout.rewards, 1.0
    if isinstance(agent, Agent):
        trained_on = 0.0 if agent.kl_in == "loss" else agent.current_kl_coef
        gamma = agent.gamma
        if trained_on != kl_coef:
            rewards = rewards + (kl_coef - trained_on) * (rollout.log_probs - rollout.ref_log_probs)
    return gae(rewards, rollout.values, rollout.mask, gamma, float(gae_lambda))


def _reward_terms(mdp: TextMDP, start: TextState, rollout: Rollout) -> dict[str, NDArray[np.float64]]:
    """Each term of r_t, [B, T]."""
    mask = rollout.mask.cpu().numpy()
    transitions = mdp.transitions(start, rollout.tokens.cpu().numpy(), mask)
    log_probs = (rollout.ref_log_probs.cpu().numpy(), rollout.log_probs.cpu().numpy())
    scores = np.nan_to_num(rollout.scores.cpu().numpy())
    return mdp.reward_terms(transitions, log_probs[0], scores, log_probs[1])


def exact_columns(
    solution: exact.Solution, known: exact.Evaluation, costs: NDArray[np.float64], prompt: int, token_ids: list[int]
) -> dict[str, list[float]]:
    """What is known exactly of the tokens of a completion, see this file's docstring; `costs` [S] are of each state."""
    s, a = solution.tree.states_of(prompt, token_ids), np.array(token_ids, dtype=np.int64)
    log_ratio = known.log_probs[s, a] - solution.tree.ref_log_probs[s, a]
    columns = {
        "value": known.values[s],
        "advantage": known.advantages[s, a],
        "optimal_value": solution.values[s],
        "optimal_q": solution.q_values[s, a],
        "cost": solution.values[s] - solution.q_values[s, a] + solution.kl_coef * log_ratio,
        "state_cost": costs[s],
    }
    return {name: _plain(values) for name, values in columns.items()}


def token_texts(mdp: TextMDP, token_ids: list[int]) -> list[str]:
    """What each token adds to the text; together they are the completion.

    "" for the EOS token, for other tokens without a text, and where bytes of a character are still missing: the last
    token of the character adds it.
    """
    texts, before = [], ""
    count = sum(not mdp.is_eos[token] for token in token_ids)  # EOS is the last one
    for end, token in enumerate(token_ids, start=1):
        text = mdp.decode(token_ids[:end])
        if end < count and text.endswith("\N{REPLACEMENT CHARACTER}"):
            texts.append("")
            continue
        # a decoder that changes the text before is told by the token alone
        texts.append(text[len(before) :] if text.startswith(before) else mdp.decode([token]))
        before = text
    return texts


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _plain(values: Tensor | NDArray[np.float64]) -> list[float]:
    rounded: list[float] = np.round(np.asarray(values.tolist(), dtype=np.float64), DIGITS).tolist()
    return rounded
