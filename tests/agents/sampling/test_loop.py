"""Whatever generates, the same test: the distribution, and the log-probabilities that it hands back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chi2
from transformers.activations import NewGELUActivation

from agents import PPO
from agents.policy.categorical import LARGE_VOCABULARY, sample_categorical
from agents.sampling import Generation, GraphSampler, Sampler, collect, generate_sampler, new_generator, sample
from agents.sampling.loop import MIN_FINISHED_ROWS
from tests.helpers.models import CLOSE, check_frequencies, language_model, sampling_task
from textenv.lm import CachedDecoder
from textenv.lm.forward import FusedGELU

SAMPLERS = pytest.mark.parametrize(
    "sampler", [sample, generate_sampler, GraphSampler()], ids=["loop", "generate", "graph"]
)


pytestmark = pytest.mark.usefixtures("uncompiled")


@SAMPLERS
@pytest.mark.parametrize("kind", ["open", "masked", "model"])
def test_texts_come_as_often_as_they_should(sampler: Sampler, kind: str) -> None:
    """Toys of every kind, and every sampler; a recorded step as it is called, see test_compile.py for it compiled."""
    check_frequencies(sampler, kind)


@SAMPLERS
@pytest.mark.parametrize("kind", ["open", "masked", "model", "language model"])
def test_log_probs_are_those_of_a_teacher_forced_pass(sampler: Sampler, kind: str) -> None:
    """log pi of each token, as it was sampled, equals one parallel pass; prompts and answers differ in length."""
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


def test_generate_leaves_the_checkpoints_own_settings_out() -> None:
    """What would change the distribution is not pi's; it is back in its place afterwards."""
    env, policy = language_model()
    config = policy.model.generation_config
    config.no_repeat_ngram_size, config.min_new_tokens, config.suppress_tokens = 1, 5, [40, 41]
    rollout = collect(env, policy, 48, generator=new_generator("cpu", 0), sampler=generate_sampler)
    with torch.no_grad():
        forced = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    assert float((forced.log_probs - rollout.log_probs)[rollout.mask].abs().max()) < CLOSE
    assert policy.model.generation_config is config and int(rollout.mask.sum(dim=1).min()) < 5


@pytest.mark.parametrize("kind", ["open", "masked", "model"])
def test_ids_and_log_probs_are_all_that_a_server_must_say(kind: str) -> None:
    """As arrays of any integers and floats; the reference, and what it forbids, is asked afterwards."""
    env, policy = sampling_task(kind)

    def server(policy: Any, mdp: Any, texts: Any, generator: Any) -> Generation:
        said = sample(policy, mdp, texts, generator)
        return Generation(said.input_ids.int().numpy(), said.attention_mask.numpy(), said.log_probs.double().numpy())  # type: ignore[arg-type]

    known, asked = (collect(env, policy, 24, generator=new_generator("cpu", 0), sampler=s) for s in (sample, server))
    for name in ("input_ids", "mask", "log_probs", "ref_log_probs", "rewards", "scores", "values"):
        assert torch.allclose(getattr(known, name), getattr(asked, name), rtol=0, atol=1e-6), name
    if kind == "masked":
        assert known.action_mask is not None and asked.action_mask is not None
        assert known.action_mask.equal(asked.action_mask) and not known.action_mask.all()
    assert asked.input_ids.dtype == torch.int64 and asked.log_probs.dtype == torch.float32


def test_what_a_sampler_gets_wrong_is_told() -> None:
    """A shape, or a token that is forbidden, in a sentence."""
    env, policy = sampling_task("masked")

    def short(*arguments: Any) -> Generation:
        said = sample(*arguments)
        return said._replace(log_probs=said.log_probs[:, 1:])

    def narrow(*arguments: Any) -> Generation:
        said = sample(*arguments)
        return said._replace(values=said.log_probs[:, :2])

    def wild(*arguments: Any) -> Generation:
        said = sample(*arguments)
        return Generation(said.input_ids.clamp(min=1), said.attention_mask, said.log_probs)

    with pytest.raises(ValueError, match=r"hand back log_probs of shape \(24, 4\), got \(24, 3\)"):
        collect(env, policy, 24, sampler=short)
    with pytest.raises(ValueError, match=r"hand back values of shape \(24, 4\), got \(24, 2\)"):
        collect(env, policy, 24, sampler=narrow)
    with pytest.raises(ValueError, match="the reference gives probability 0: it must obey the mask"):
        collect(env, policy, 24, sampler=wild)


def test_a_policy_that_says_nan_is_told_of() -> None:
    """In a sentence, also where many words are drawn from; one that says numbers is not."""
    env, policy = language_model()
    collect(env, policy, 4)
    with torch.no_grad():
        policy.model.lm_head.weight[5] = torch.nan
    for sampler in (sample, GraphSampler()):
        with pytest.raises(ValueError, match=r"probabilities are nan: it has diverged. Lower learning_rate"):
            collect(env, policy, 4, sampler=sampler)


@SAMPLERS
def test_an_agent_learns_from_any_sampler(sampler: Sampler) -> None:
    """Put in its place, and the first minibatch's ratio is 1."""
    env, policy = language_model()
    agent = PPO(policy, env, n_episodes=16, n_epochs=1, seed=0)
    agent.sampler = sampler
    seen: list[dict[str, float]] = []
    agent.learn(100, callback=lambda agent, rollout, metrics: seen.append(metrics))
    assert all(metrics["val/ratio_error_max"] < CLOSE for metrics in seen)


def test_many_words_are_drawn_as_often_as_they_should() -> None:
    """From so many words on another method draws; a word of probability 0 never comes, not even at the ends."""
    generator = new_generator("cpu", 0)
    probs = torch.rand(LARGE_VOCABULARY, generator=generator) ** 4
    probs[[0, 7, 8, LARGE_VOCABULARY - 1]] = 0.0
    probs /= probs.sum()
    drawn = sample_categorical(probs.expand(60_000, -1), generator)
    counts = torch.bincount(drawn, minlength=LARGE_VOCABULARY)
    assert counts[probs == 0].sum() == 0
    often = 60_000 * probs >= 5
    statistic = float((((counts - 60_000 * probs) ** 2) / (60_000 * probs))[often].sum())
    assert chi2.sf(statistic, int(often.sum()) - 1) > 1e-3


def test_texts_that_have_ended_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model reads fewer and fewer rows, and those that go on are not disturbed: the log-probs are still right."""
    env, policy = language_model(max_new_tokens=16)
    rows: list[int] = []
    decode_step = CachedDecoder.decode_step

    def count(self: CachedDecoder, tokens: Any, reads: Any = None) -> Any:
        rows.append(len(tokens))
        return decode_step(self, tokens, reads)

    monkeypatch.setattr(CachedDecoder, "decode_step", count)
    rollout = collect(env, policy, 8 * MIN_FINISHED_ROWS, generator=new_generator("cpu", 0))
    assert rows == sorted(rows, reverse=True) and rows[-1] < rows[0] / 2
    with torch.no_grad():
        forced = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    assert float((forced.log_probs - rollout.log_probs)[rollout.mask].abs().max()) < CLOSE


def test_the_fused_activation_is_the_same_function() -> None:
    """In single precision to rounding, with its gradient; in double to the last bit."""
    x = torch.linspace(-6, 6, 1001)
    for dtype, close in ((torch.float32, 1e-6), (torch.float64, 0.0)):
        values, slopes = [], []
        for activation in (NewGELUActivation(), FusedGELU()):
            point = x.to(dtype).requires_grad_()
            values.append(activation(point))
            slopes.append(torch.autograd.grad(values[-1].sum(), point)[0])
        assert float((values[0] - values[1]).abs().max()) <= close
        assert float((slopes[0] - slopes[1]).abs().max()) <= 10 * close
