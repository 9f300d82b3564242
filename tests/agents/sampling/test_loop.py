"""Every sampler: the distribution of its completions, and the log-probabilities that it returns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from agents import PPO, Diverged
from agents.policy import TransformerPolicy
from agents.sampling import Generation, GraphSampler, Sampler, collect, generate_sampler, new_generator, sample
from agents.sampling.loop import MIN_FINISHED_ROWS
from tests.helpers.company import environment
from tests.helpers.models import CLOSE, check_frequencies, language_model, sampling_task
from tests.helpers.tiny_models import causal_lm_configs, tiny_causal_lm
from textenv import get_mdp
from textenv.lm import CachedDecoder

SAMPLERS = pytest.mark.parametrize(
    "sampler", [sample, generate_sampler, GraphSampler()], ids=["loop", "generate", "graph"]
)


pytestmark = pytest.mark.usefixtures("uncompiled")


@SAMPLERS
@pytest.mark.parametrize("kind", ["open", "masked", "model"])
def test_completions_are_distributed_as_pi(sampler: Sampler, kind: str) -> None:
    """Chi-square tests on toys of every kind; the graph sampler's step in eager mode (compiled: test_compile.py)."""
    check_frequencies(sampler, kind)


@SAMPLERS
@pytest.mark.parametrize("kind", ["open", "masked", "model", "language model"])
def test_log_probs_are_those_of_a_teacher_forced_pass(sampler: Sampler, kind: str) -> None:
    """log pi of each sampled token equals that of one parallel pass; prompts and completions differ in length."""
    env, policy = language_model() if kind == "language model" else sampling_task(kind)
    rollout = collect(env, policy, 48, generator=new_generator("cpu", 0), sampler=sampler)
    assert len(set(rollout.mask.sum(dim=1).tolist())) > 1
    with torch.no_grad():
        forced = policy.evaluate_actions(
            rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask
        )
    assert float((forced.log_probs - rollout.log_probs)[rollout.mask].abs().max()) < CLOSE
    assert float(rollout.log_probs[~rollout.mask].abs().sum()) == 0
    assert (rollout.action_mask is not None) == (kind == "masked")


@SAMPLERS
@pytest.mark.parametrize("kind", ["open", "masked", "model"])
def test_rows_may_start_at_different_times(sampler: Sampler, kind: str) -> None:
    """From the beginnings of other completions: each row continues to its own end, with log pi of its own tokens."""
    env, policy = sampling_task(kind)
    mdp = get_mdp(env)
    before = collect(env, policy, 24, generator=new_generator("cpu", 0))
    tokens = [before.tokens[row][before.mask[row]].tolist() for row in range(24)]
    beginnings = [each[: row % len(each)] for row, each in enumerate(tokens)]
    start = mdp.empty_state(24)
    for row, beginning in enumerate(beginnings):
        start.put(row, mdp.make_state(int(before.prompt[row]), beginning))
    assert len(set(start.time.tolist())) > 1  # control: else this is the test above
    found = collect(env, policy, start=start, generator=new_generator("cpu", 1), sampler=sampler)
    with torch.no_grad():
        forced = policy.evaluate_actions(found.input_ids, found.attention_mask, found.num_tokens, found.action_mask)
    assert float((forced.log_probs - found.log_probs)[found.mask].abs().max()) < CLOSE
    for row, beginning in enumerate(beginnings):
        length = len(beginning) + int(found.mask[row].sum())
        assert found.tokens[row][: len(beginning)].tolist() == beginning and not found.mask[row][: len(beginning)].any()
        assert len(beginning) < length <= mdp.max_new_tokens
        assert bool(found.stopped[row]) == bool(mdp.is_eos[int(found.tokens[row][length - 1])])
        assert bool(found.stopped[row]) or length == mdp.max_new_tokens


def test_generate_ignores_the_checkpoints_generation_config() -> None:
    """It would change the distribution and is no part of pi; it is restored afterwards."""
    env, policy = language_model()
    config = policy.model.generation_config
    config.no_repeat_ngram_size, config.min_new_tokens, config.suppress_tokens = 1, 5, [40, 41]
    rollout = collect(env, policy, 48, generator=new_generator("cpu", 0), sampler=generate_sampler)
    with torch.no_grad():
        forced = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    assert float((forced.log_probs - rollout.log_probs)[rollout.mask].abs().max()) < CLOSE
    assert policy.model.generation_config is config and int(rollout.mask.sum(dim=1).min()) < 5


@pytest.mark.parametrize("name", ["Roberta", "Bart"])
def test_generate_refuses_models_that_padding_changes(name: str) -> None:
    """It pads on the left; the loop pads on the right where that is right."""
    env = environment(tiny_causal_lm(causal_lm_configs()[f"{name}Config"]))
    policy = TransformerPolicy.for_env(env)
    with pytest.raises(ValueError, match=f"which changes what a {name}ForCausalLM computes: use the loop sampler"):
        collect(env, policy, 4, generator=new_generator("cpu", 0), sampler=generate_sampler)
    rollout = collect(env, policy, 4, generator=new_generator("cpu", 0))
    assert float((rollout.log_probs - rollout.ref_log_probs)[rollout.mask].abs().max()) < CLOSE


@pytest.mark.parametrize("kind", ["open", "masked", "model"])
def test_a_sampler_may_return_only_ids_and_log_probs(kind: str) -> None:
    """As arrays of any integer and float dtype; `collect` computes the reference's log-probabilities and masks."""
    env, policy = sampling_task(kind)

    def server(policy: Any, mdp: Any, state: Any, generator: Any) -> Generation:
        own = sample(policy, mdp, state, generator)
        return Generation(own.input_ids.int().numpy(), own.attention_mask.numpy(), own.log_probs.double().numpy())  # type: ignore[arg-type]

    full, minimal = (collect(env, policy, 24, generator=new_generator("cpu", 0), sampler=s) for s in (sample, server))
    for name in ("input_ids", "mask", "log_probs", "ref_log_probs", "rewards", "scores", "values"):
        assert torch.allclose(getattr(full, name), getattr(minimal, name), rtol=0, atol=1e-6), name
    if kind == "masked":
        assert full.action_mask is not None and minimal.action_mask is not None
        assert full.action_mask.equal(minimal.action_mask) and not full.action_mask.all()
    assert minimal.input_ids.dtype == torch.int64 and minimal.log_probs.dtype == torch.float32


def test_a_sampler_may_leave_out_the_mask_alone() -> None:
    """`collect` computes it, as if the sampler had no log pi_ref either: rho is 1 in the first minibatch."""
    env, policy = sampling_task("masked")

    def unmasked(*arguments: Any) -> Generation:
        return sample(*arguments)._replace(action_mask=None)

    full, found = (collect(env, policy, 24, generator=new_generator("cpu", 0), sampler=s) for s in (sample, unmasked))
    assert full.action_mask is not None and found.action_mask is not None and not full.action_mask.all()
    assert full.action_mask.equal(found.action_mask)
    assert torch.allclose(full.ref_log_probs, found.ref_log_probs, rtol=0, atol=1e-6)
    agent = PPO(policy, env, n_episodes=24, n_epochs=1, seed=0)
    with torch.no_grad():
        ratio = [
            (agent.evaluate_actions(rollout).log_probs - rollout.log_probs)[rollout.mask].exp()
            for rollout in (found, replace(found, action_mask=None))
        ]
    assert float((ratio[0] - 1).abs().max()) < CLOSE < 0.01 < float((ratio[1] - 1).abs().max())  # control: no mask


@pytest.mark.parametrize("name", Generation._fields)
def test_every_tensor_of_a_sampler_must_have_its_shape(name: str) -> None:
    """One column less is refused with the name."""
    env, policy = sampling_task("masked")

    def sampler(*arguments: Any, columns: int) -> Generation:
        generation = sample(*arguments)
        generation = generation._replace(values=torch.zeros_like(generation.log_probs))
        return generation._replace(**{name: getattr(generation, name)[:, :columns]})

    collect(env, policy, 24, sampler=partial(sampler, columns=99))  # control: none is cut
    with pytest.raises(ValueError, match=rf"A sampler must return {name} of shape \(24, "):
        collect(env, policy, 24, sampler=partial(sampler, columns=3))
    if name == "action_mask":
        with pytest.raises(ValueError, match=r"return action_mask of shape \(24, 4, \d+\), got \(24, 4, 2\)"):
            collect(env, policy, 24, sampler=lambda *a: sample(*a)._replace(action_mask=torch.ones(24, 4, 2)))


def test_a_wrong_generation_is_an_error() -> None:
    """A wrong shape, or a masked token."""
    env, policy = sampling_task("masked")

    def short(*arguments: Any) -> Generation:
        generation = sample(*arguments)
        return generation._replace(log_probs=generation.log_probs[:, 1:])

    def narrow(*arguments: Any) -> Generation:
        generation = sample(*arguments)
        return generation._replace(values=generation.log_probs[:, :2])

    def unmasked(*arguments: Any) -> Generation:
        generation, width = sample(*arguments), env.unwrapped.mdp.prompt_width
        ids, mask = generation.input_ids, generation.action_mask
        assert mask is not None
        goes_on = generation.attention_mask[:, width + 1] == 1  # whose first token may be any that is not EOS
        ids[:, width] = torch.where(goes_on, 1 + mask[:, 0, 1:].int().argmin(dim=1), ids[:, width])
        return Generation(ids, generation.attention_mask, generation.log_probs)

    with pytest.raises(ValueError, match=r"return log_probs of shape \(24, 4\), got \(24, 3\)"):
        collect(env, policy, 24, sampler=short)
    with pytest.raises(ValueError, match=r"return values of shape \(24, 4\), got \(24, 2\)"):
        collect(env, policy, 24, sampler=narrow)
    with pytest.raises(ValueError, match="the reference gives probability 0: it must obey the mask"):
        collect(env, policy, 24, sampler=unmasked)


def test_nan_probabilities_are_an_error() -> None:
    """Also with a large vocabulary; finite probabilities are not."""
    env, policy = language_model()
    collect(env, policy, 4)
    with torch.no_grad():
        policy.model.lm_head.weight[5] = torch.nan
    for sampler in (sample, GraphSampler()):
        with pytest.raises(Diverged, match=r"probabilities are not finite in 4 of 4 completions"):
            collect(env, policy, 4, sampler=sampler)


@SAMPLERS
def test_an_agent_trains_with_any_sampler(sampler: Sampler) -> None:
    """The first minibatch's ratio is 1."""
    env, policy = language_model()
    agent = PPO(policy, env, n_episodes=16, n_epochs=1, seed=0)
    agent.sampler = sampler
    updates: list[dict[str, float]] = []
    agent.learn(100, callback=lambda agent, rollout, metrics: updates.append(metrics))
    assert all(metrics["val/ratio_error_max"] < CLOSE for metrics in updates)


def test_finished_rows_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of decoded rows falls, and the log-probabilities of the live rows are still right."""
    env, policy = language_model(max_new_tokens=16)
    rows: list[int] = []
    decode_step = CachedDecoder.decode_step

    def count(self: CachedDecoder, tokens: Any, live: Any = None) -> Any:
        rows.append(len(tokens))
        return decode_step(self, tokens, live)

    monkeypatch.setattr(CachedDecoder, "decode_step", count)
    rollout = collect(env, policy, 8 * MIN_FINISHED_ROWS, generator=new_generator("cpu", 0))
    assert rows == sorted(rows, reverse=True) and rows[-1] < rows[0] / 2
    with torch.no_grad():
        forced = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    assert float((forced.log_probs - rollout.log_probs)[rollout.mask].abs().max()) < CLOSE
