"""TRL's RLOO and GRPO with the interface of our agents, alone and in a trial (`make trl`)."""

from __future__ import annotations

import copy
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl")

from agents import Diverged
from agents.functional import leave_one_out
from agents.policy import TransformerPolicy
from experiments.metrics_file import read_metrics
from experiments.trial import prepare, run_trial
from experiments.trial_log import TrialLog
from experiments.trl_agents import TRLGRPO, TRLRLOO, TRLAgent
from experiments.trl_task import prompt_ids, trl_prompts
from experiments.trl_updates import Updates
from tests.helpers.commands import command, stories_flags, tiny
from tests.helpers.models import model
from tests.helpers.tokenizers import byte_level
from tests.helpers.trl_tasks import word_task
from textenv import get_mdp

BOTH = [TRLRLOO, TRLGRPO]
every_agent = pytest.mark.parametrize("kind", BOTH, ids=lambda kind: kind.__name__)
# What each setting is called in the trainer's config, and other values than the defaults with what the config then has.
REACHES: dict[str, tuple[str, list[tuple[Any, Any]]]] = {
    "learning_rate": ("learning_rate", [(0.02, 0.02)]),
    "n_episodes": ("generation_batch_size", [(16, 16)]),
    "max_grad_norm": ("max_grad_norm", [(0.3, 0.3)]),
    "seed": ("seed", [(3, 3)]),
    "num_generations": ("num_generations", [(4, 4)]),
    "n_epochs": ("num_iterations", [(3, 3)]),
    "clip_range": ("epsilon", [(0.05, 0.05)]),
    "clip_range_high": ("epsilon_high", [(0.4, 0.4)]),
    "kl_coef": ("beta", [(0.7, 0.7), (0.0, 0.0)]),
    "micro_batch_size": ("gradient_accumulation_steps", [(2, 4)]),
    "normalize_advantage": ("normalize_advantages", [(True, True)]),
    "loss_type": ("loss_type", [("grpo", "grpo")]),
    "scale_rewards": ("scale_rewards", [("none", "none")]),
    "importance": ("importance_sampling_level", [("sequence", "sequence")]),
}
DEFAULTS = {"n_episodes": 8, "num_generations": 2, "learning_rate": 1e-3, "seed": 0}


def agent_of(kind: Any, env: Any = None, **settings: Any) -> Any:
    """An agent on nine words, few completions an update."""
    env = word_task() if env is None else env
    return kind(TransformerPolicy.for_env(env), env, **(DEFAULTS | settings))


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainers that are made in a test."""
    made: list[Any] = []
    make = TRLAgent._make_trainer

    def keep(self: TRLAgent, updates: Updates, folder: str) -> Any:
        made.append(make(self, updates, folder))
        return made[-1]

    monkeypatch.setattr(TRLAgent, "_make_trainer", keep)
    return made


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[list[int]], list[int], list[float | None]]]:
    """Completions, indices of their prompts and returns of each batch in a test."""
    batches: list[Any] = []
    score = Updates.score

    def keep(self: Updates, completion_ids: list[list[int]], index: list[int], **rest: Any) -> Any:
        found = score(self, completion_ids=completion_ids, index=index, **rest)
        batches.append((completion_ids, index, found))
        return found

    monkeypatch.setattr(Updates, "score", keep)
    return batches


@every_agent
def test_tokens_are_counted_as_the_environment_does(kind: Any, sampled: list[Any]) -> None:
    """EOS included, and nothing behind it; the callback comes after each batch's steps; the given policy stays."""
    env = word_task()
    start = TransformerPolicy.for_env(env)
    before = [p.clone() for p in start.parameters()]
    agent = kind(start, env, **DEFAULTS, n_epochs=2)
    calls: list[tuple[int, int, dict[str, float]]] = []
    steps: list[int] = []
    agent.optimizer.register_step_post_hook(lambda *_: steps.append(len(calls)))
    agent.learn(100, lambda agent, rollout, m: calls.append((agent.num_timesteps, agent.num_updates, m)))
    mdp = get_mdp(env)
    tokens = np.cumsum([sum(map(len, ids)) for ids, _, _ in sampled]).tolist()
    assert [call[0] for call in calls] == tokens and tokens[-2] < 100 <= tokens[-1] == agent.num_timesteps
    assert [call[1] for call in calls] == list(range(1, len(tokens) + 1)) and agent.num_updates == len(tokens)
    assert steps == [update for update in range(len(tokens)) for _ in range(2)]
    completions = [ids for batch, _, _ in sampled for ids in batch]
    assert all(not mdp.is_eos[ids[:-1]].any() for ids in completions)
    assert all(mdp.is_eos[ids[-1]] or len(ids) == mdp.max_new_tokens for ids in completions)
    assert {bool(mdp.is_eos[ids[-1]]) for ids in completions} == {True, False}
    for _, index, _ in sampled:
        assert all(len(set(index[i : i + 2])) == 1 for i in range(0, 8, 2))  # groups
    assert {i for _, index, _ in sampled for i in index} == {0, 1, 2}
    assert all(math.isfinite(v) for *_, m in calls for v in m.values())
    assert {"train/loss", "train/kl", "objective/scores", "completions/mean_length"} <= calls[0][2].keys()
    assert all(map(torch.equal, before, start.parameters()))
    assert not all(map(torch.equal, before, agent.policy.parameters()))


@every_agent
@pytest.mark.parametrize("special", ["words", "bos", "chat"])
def test_the_trainer_reads_the_prompts_of_the_task(kind: Any, special: str, trainers: list[Any]) -> None:
    """The very ids, BOS and chat template included, and samples with the task's end tokens and length."""
    changes: dict[str, Any] = {}
    if special != "words":
        tokenizer = byte_level()
        prompts = ["hello", "hello world"] if special == "bos" else [[{"role": "user", "content": "hello"}]]
        changes = {"tokenizer": tokenizer, "prompts": prompts, "max_new_tokens": 3}
        reference = model("gpt2", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
        changes["reference"] = reference.float()
    env = word_task(**changes)
    agent_of(kind, env).learn(1)
    mdp, trainer = get_mdp(env), trainers[0]
    rows = zip(mdp.prompts.input_ids, mdp.prompts.attention_mask, strict=True)
    expected = [ids[mask > 0].tolist() for ids, mask in rows]
    read = trainer._tokenize_prompts(trl_prompts(mdp))[0]
    assert [list(ids) for ids in read] == expected == prompt_ids(mdp.tokenizer, trl_prompts(mdp), {})
    assert set(trainer.eos_token_ids) == set(mdp.eos_token_ids)
    assert trainer.generation_config.max_new_tokens == mdp.max_new_tokens
    assert (trainer.temperature, trainer.top_p, trainer.top_k) == (1.0, 1.0, 0)
    assert mdp.tokenizer.pad_token is None  # the trainer has a copy


@every_agent
def test_every_setting_reaches_the_trainer(kind: Any, trainers: list[Any]) -> None:
    """Other values than the defaults arrive, and (control) the defaults are other values. A new field needs a line."""
    agent_of(kind).learn(1)
    for field in fields(kind):
        if field.name in ("initial_policy", "env", "lr_schedule"):  # the schedule has a test of its own
            continue
        name, values = REACHES[field.name]
        for value, expected in values:
            agent_of(kind, **{field.name: value}).learn(1)
            assert getattr(trainers[-1].args, name) == expected != getattr(trainers[0].args, name), field.name
    assert trainers[0].beta == 0.1  # the task's
    assert trainers[0].args.bf16 is False and trainers[0].args.weight_decay == 0.0


@every_agent
def test_defaults_are_those_of_trl(kind: Any) -> None:
    """But for beta, which is the task's, and what all agents share."""
    import trl

    config = getattr(trl, f"{kind.trainer}Config")
    defaults = {f.name: f.default for f in fields(config)}
    for field in fields(kind):
        if field.name in ("initial_policy", "env", "n_episodes", "seed", "kl_coef", "lr_schedule", "micro_batch_size"):
            continue
        assert field.default == defaults[REACHES[field.name][0]], field.name
    assert str(defaults["lr_scheduler_type"]) == kind.lr_schedule == "linear"


@every_agent
def test_the_optimizer_is_the_one_that_trl_makes(kind: Any, trainers: list[Any]) -> None:
    """Class, betas, eps, weight decay; it steps the parameters of the policy's model."""
    agent = agent_of(kind)
    agent.learn(1)
    trainer = trainers[0]
    cls, arguments = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    assert type(agent.optimizer) is cls
    theirs = cls([torch.nn.Parameter(torch.zeros(1))], weight_decay=trainer.args.weight_decay, **arguments).defaults
    assert theirs == agent.optimizer.defaults
    assert {id(p) for p in agent._optimized()} == {id(p) for p in agent.policy.model.parameters()}


@every_agent
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_reference_is_the_task_s(kind: Any, family: str, trainers: list[Any], tmp_path: Path) -> None:
    """Also where training resumes from a policy that has moved; there is none without a KL."""
    env = word_task(family)
    agent = agent_of(kind, env, learning_rate=0.05)
    agent.learn(60)
    agent.save(tmp_path / "saved")
    loaded = kind.load(tmp_path / "saved", env)
    loaded.learn(1, reset_num_timesteps=False)
    reference = get_mdp(env).reference.model.state_dict()
    for trainer in trainers:
        theirs = trainer.ref_model.state_dict()
        assert all(torch.equal(theirs[name], reference[name]) for name in reference)
    moved = loaded.policy.model.state_dict()
    assert not all(torch.equal(moved[name], reference[name]) for name in reference)  # control
    agent_of(kind, env, kl_coef=0.0).learn(1)
    assert trainers[-1].ref_model is None


@every_agent
def test_a_model_is_left_as_it_was_but_for_its_weights(kind: Any, tmp_path: Path) -> None:
    """Forward pass, mode and configs; also in what is saved while it trains."""
    env = word_task("gpt2")
    agent = agent_of(kind, env)
    own = agent.policy.model
    config, generation = copy.deepcopy(own.config.to_dict()), own.generation_config.to_dict()
    saved: list[dict[str, Any]] = []
    modes: list[bool] = []

    def look(agent: Any, rollout: object, metrics: dict[str, float]) -> None:
        modes.append(any(module.training for module in agent.policy.modules()))
        agent.save(tmp_path / "saved")
        saved.append(TransformerPolicy.from_pretrained(tmp_path / "saved").model.config.to_dict())

    agent.learn(60, look)
    assert "forward" not in vars(own) and not own.training
    assert own.config.to_dict() == config and own.generation_config.to_dict() == generation
    assert len(modes) > 1 and not any(modes)
    assert saved[0]["pad_token_id"] == config["pad_token_id"] is None


@every_agent
def test_the_score_rises(kind: Any) -> None:
    """From that of the reference, close to the largest possible one: five a's."""
    agent, scores = agent_of(kind, word_task(kl_coef=0.01), n_episodes=64, num_generations=8, learning_rate=0.01), []
    agent.learn(8000, lambda agent, rollout, metrics: scores.append(metrics["objective/scores"]))
    assert scores[0] < 1.0 < 3.5 < scores[-1]


@every_agent
def test_the_step_size_falls_as_trl_has_it(kind: Any) -> None:
    """Linearly over the steps where all completions have the same length, to the last one."""
    env = word_task(reference=never_ending(), max_new_tokens=5)
    rates: list[float] = []
    agent = agent_of(kind, env, n_epochs=2, learning_rate=0.1)
    agent.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    agent.learn(4 * 8 * 5)
    assert rates == pytest.approx([0.1 * (1 - step / 8) for step in range(8)])
    assert agent.num_timesteps == 160


def never_ending() -> Any:
    """A model that hardly ever samples EOS."""
    own = model("gpt2").float()
    with torch.no_grad():
        own.transformer.wte.weight[0] = 0.0
        own.transformer.ln_f.bias.add_(1.0)
        own.transformer.wte.weight[1:].add_(3.0)
    return own


def test_the_first_gradient_of_rloo_is_that_of_ours(sampled: list[Any]) -> None:
    """By Adam's first moment, a tenth of it: of - mean_i (G_i - b_i) log pi(y_i|x_i), the KL in G as in our rewards."""
    env = word_task(kl_coef=0.3)
    mdp = get_mdp(env)
    policy = TransformerPolicy.for_env(env)
    with torch.no_grad():  # away from the reference, so that the KL counts
        for parameter in policy.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    settings = DEFAULTS | {"n_episodes": 16, "num_generations": 4, "max_grad_norm": 1e9}
    agent = TRLRLOO(policy, env, **settings)
    agent.learn(1)
    completions, index, scores = sampled[0]
    length = max(map(len, completions))
    mask = torch.tensor([[t < len(ids) for t in range(length)] for ids in completions])
    tokens = torch.tensor([ids + [0] * (length - len(ids)) for ids in completions])
    ids = torch.cat([torch.as_tensor(mdp.prompts.input_ids[index]), tokens], dim=1)
    attention = torch.cat([torch.as_tensor(mdp.prompts.attention_mask[index]).long(), mask.long()], dim=1)
    log_probs = (policy.evaluate_actions(ids, attention, length, values=False).log_probs * mask).sum(dim=1)
    reference = (mdp.reference.token_log_probs(ids, attention, length) * mask).sum(dim=1)
    returns = torch.tensor(scores) - 0.3 * (log_probs.detach() - reference)
    advantages = returns - leave_one_out(returns, 4)
    loss = -(advantages * log_probs).mean()
    gradients = torch.autograd.grad(loss, list(policy.model.parameters()))
    for gradient, trained in zip(gradients, agent._optimized(), strict=True):
        torch.testing.assert_close(10 * agent.optimizer.state[trained]["exp_avg"], gradient, atol=1e-5, rtol=1e-3)


@every_agent
def test_micro_batches_take_the_same_step(kind: Any) -> None:
    """But for rounding: the gradient is accumulated."""
    ends = []
    for size in (None, 4):
        agent = agent_of(kind, micro_batch_size=size, max_grad_norm=1e9)
        agent.learn(1)
        ends.append([agent.optimizer.state[p]["exp_avg"] for p in agent._optimized()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)


@every_agent
def test_a_callback_stops_and_learning_continues(kind: Any, sampled: list[Any], tmp_path: Path) -> None:
    """No token more is sampled. Loaded, it has moments and counts, and samples other prompts or tokens."""
    env = word_task()
    agent = agent_of(kind, env)
    agent.learn(1000, lambda agent, rollout, metrics: agent.num_updates < 2)
    assert agent.num_updates == len(sampled) == 2 and agent.num_timesteps < 100
    agent.save(tmp_path / "saved")
    loaded = kind.load(tmp_path / "saved", env)
    assert (loaded.num_timesteps, loaded.num_updates) == (agent.num_timesteps, 2)
    for one, other in zip(agent._optimized(), loaded._optimized(), strict=True):
        assert torch.equal(one, other)
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(agent.optimizer.state[one][name], loaded.optimizer.state[other][name])
    rates: list[float] = []
    loaded.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    before, goal = loaded.num_timesteps, 1000
    loaded.learn(goal - before, lambda agent, rollout, metrics: agent.num_updates < 3, reset_num_timesteps=False)
    assert rates == pytest.approx([1e-3 * (1 - before / goal)])
    assert loaded.num_updates == 3 and sampled[2][0] != sampled[0][0]
    with pytest.raises(ValueError, match="total_timesteps must be a whole number"):
        loaded.learn(-1)
    assert loaded.learn(0, reset_num_timesteps=False).num_updates == 3


@every_agent
def test_more_prompts_than_the_task_has_fill_a_batch(kind: Any, sampled: list[Any]) -> None:
    """Three prompts, eight groups: some are sampled again."""
    agent_of(kind, n_episodes=16).learn(1)
    assert len(sampled[0][1]) == 16 and set(sampled[0][1]) == {0, 1, 2}


def test_an_absurd_learning_rate_ends_training() -> None:
    """With the error of our agents, and not with one of torch's."""
    with pytest.raises(Diverged, match=r"has diverged in update \d.*learning_rate \(1e\+12\)"):
        agent_of(TRLRLOO, learning_rate=1e12).learn(1000)


@pytest.mark.parametrize("agent", ["trl-rloo", "trl-grpo"])
def test_a_stopped_trial_of_trl_resumes(
    agent: str, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its checkpoint, with optimizer and counts; a finished one is not trained again."""
    flags = stories_flags(assets, tmp_path) | {"total_timesteps": 200, "num_evals": 2}
    config = tiny(**flags, agent=agent, gradient_checkpointing=agent == "trl-grpo")
    initial = tmp_path / "run" / "initial"
    env = config.make_environments()
    prepare(config, env, initial.parent, [config])
    log_row = TrialLog.log_row

    def stop(self: TrialLog, row: dict[str, float]) -> None:
        log_row(self, row)
        if row["num_updates"] == 2:
            self.checkpoint()
        if row["num_updates"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialLog, "log_row", stop)
        with pytest.raises(KeyboardInterrupt):
            run_trial(config, tmp_path / "run", initial)
    summary = run_trial(config, tmp_path / "run", initial)
    rows = read_metrics(tmp_path / "run")
    assert [row["num_updates"] for row in rows] == list(range(summary["num_updates"] + 1))
    assert summary["num_timesteps"] == rows[-1]["num_timesteps"] >= 200
    assert sum("eval/objective" in row for row in rows) == 3
    assert summary["objective"] != rows[0]["eval/objective"] and len(summary["completions"]) == 2
    monkeypatch.setattr(TRLAgent, "learn", None)
    assert run_trial(config, tmp_path / "run", initial) == summary


@pytest.mark.slow
def test_compare_runs_ours_and_trls(assets: Path, tmp_path: Path) -> None:
    """Side by side, on the same task."""
    flags = stories_flags(assets, tmp_path)
    task = ["--env", flags["env"], "--model", flags["model"], "--prompts", flags["prompts"]]
    sizes = ["--max-new-tokens", "4", "--eval-episodes", "8", "--n-episodes", "8", "--total-timesteps", "64"]
    agents = ["--agents", "rloo", "trl-rloo", "--trl-rloo.n-epochs", "2", "--seeds", "0", "--num-evals", "1"]
    done = command("compare", *agents, *task, *sizes, "--reward", *flags["reward"], "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "trl-rloo" in done.stdout and (tmp_path / "run" / "trl-rloo" / "seed-0" / "summary.json").is_file()
