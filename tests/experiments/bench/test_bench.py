"""The benchmark: the evaluator does the same work as our agents, and the command runs. No test looks at a clock."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from agents import PPO
from agents.policy import TransformerPolicy
from agents.sampling import Generation, collect, sample, sample_prompts
from experiments.bench import BenchConfig, bench, tables
from experiments.bench.exactness import EXACT, ExactWork
from experiments.bench.run import GPU
from experiments.bench.tight_loop import Batch, TightPPO, hidden_states, token_log_probs
from experiments.bench.toys import TOYS, ToyWork, size
from experiments.bench.variant_process import share_of_a_core, take_turns
from experiments.bench.variants import VARIANTS, environment, largest_ratio, paid, rounds_of, sampling
from experiments.bench.work import Work, distinct
from experiments.errors import FlagError
from textenv import get_mdp
from textenv.tree import enumerate_tree

WORK = Work("smoke", answers=8, prompt=5, tokens=6, epochs=2)


@pytest.mark.parametrize("separate_critic", [False, True])
def test_ppo_takes_the_steps_of_a_loop_written_by_hand(separate_critic: bool) -> None:
    """From the same answers the same losses, values and weights after some updates: no work is skipped."""
    env = environment(WORK)
    policy = TransformerPolicy.for_env(env, separate_critic=separate_critic)
    agent = PPO(policy, env, n_episodes=WORK.answers, n_epochs=WORK.epochs, seed=0)
    loop = TightPPO(WORK.model(), separate_critic, reward=paid, kl_coef=0.05)
    for _ in range(3):
        rollout = agent.collect()
        tokens = rollout.num_tokens
        assert tokens == WORK.tokens and rollout.mask.all()
        with torch.no_grad():
            hidden = hidden_states(loop.trunk, rollout.input_ids[:, :-1])[:, -tokens:]
            values = loop.values(hidden, rollout.input_ids)
            own = token_log_probs(loop.trunk, hidden, rollout.tokens)
        assert rollout.values is not None
        assert torch.allclose(rollout.values, values, atol=1e-5)
        assert torch.allclose(rollout.log_probs, own, atol=1e-5)
        batch = Batch(rollout.input_ids, rollout.log_probs, rollout.ref_log_probs, values, rollout.rewards)
        agent.train(rollout)
        loop.train(batch, WORK.epochs)
        for ours, theirs in zip(policy.model.transformer.parameters(), loop.trunk.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=2e-5)
        assert torch.allclose(policy.value_head.weight[0], loop.head, atol=2e-5)
    start = WORK.model().transformer.wte.weight
    assert float((loop.trunk.wte.weight - start).abs().max()) > 1e-3  # control: it learned


def test_the_tight_loop_pays_what_the_environment_pays() -> None:
    """Its own answers, scored by `collect`'s parts, have the rewards that it gave itself."""
    env = environment(WORK)
    loop = TightPPO(WORK.model(), separate_critic=False, reward=paid, kl_coef=0.05)
    prompts = torch.as_tensor(get_mdp(env).prompts.input_ids)
    batch = loop.collect(prompts, WORK.tokens)
    answers = batch.ids[:, -WORK.tokens :]
    ref_log_probs = get_mdp(env).reference.token_log_probs(batch.ids, torch.ones_like(batch.ids), WORK.tokens)
    assert torch.allclose(batch.ref_log_probs, ref_log_probs, atol=1e-5)
    expected = -0.05 * (batch.log_probs - ref_log_probs)
    expected[:, -1] += torch.tensor(distinct(None, None, answers.tolist()))
    assert torch.allclose(batch.rewards, expected, atol=1e-6)


SLOW = {"ppo, compiled"}
LESS_EXACT = {"ppo, bfloat16", "ppo, medium"}  # the latter where a CPU has AMX


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in sorted(VARIANTS)]
)
def test_every_variant_does_the_whole_work(name: str) -> None:
    """A round writes all the response tokens; phases are times; of ours, the first ratio is 1 but for rounding.

    No model has dropout, which would take time in TRL alone.
    """
    assert all(module.p == 0 for module in WORK.model().modules() if isinstance(module, torch.nn.Dropout))
    tokens, phases, numbers = VARIANTS[name](WORK)()
    assert tokens == WORK.answers * WORK.tokens
    assert all(seconds >= 0 for seconds in phases.values())
    if name.startswith(("ppo", "rloo")):
        assert 1 <= numbers["largest_ratio"] < (1.1 if name in LESS_EXACT else 1 + 1e-5)


def test_tokens_are_counted() -> None:
    """A sampler that writes nothing, or less, is not paid for what was asked of it (control of the above)."""

    def lazy(policy: Any, mdp: Any, texts: Any, generator: Any) -> Generation:
        written = sample(policy, mdp, texts, generator)
        return written._replace(attention_mask=written.attention_mask[:, :-2])

    assert sampling(WORK, lazy)().tokens == WORK.answers * (WORK.tokens - 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [name for name in GPU if not name.startswith("trl")])
def test_every_variant_does_the_whole_work_on_a_gpu(name: str) -> None:
    """As above, in bfloat16, a part of the answers at a time."""
    work = replace(WORK, device="cuda", dtype="bfloat16", micro_batch=4)
    tokens, _, numbers = VARIANTS[name](work)()
    assert tokens == WORK.answers * WORK.tokens
    assert 1 <= numbers.get("largest_ratio", 1) < 1.1


@pytest.mark.slow
def test_what_a_gpu_did_is_told_by_seconds_beside_what_it_could(tmp_path: Path) -> None:
    """The variants of the part, played here; and the bounds of cost.py."""
    work = replace(WORK, micro_batch=4, dtype="bfloat16")
    names = [name for name in GPU if not name.startswith("trl")]
    variants = take_turns(names, work, 1, tmp_path, 1)
    told = "\n".join(
        tables.gpu({"device": "a card", "variants": variants, "bounds": {"writing": 0.25, "sending": 0.0}})
    )
    for line in ("a card", "sampling, recorded / sampling, transformers:", "grpo, recorded / grpo:", "writing 0.250 s"):
        assert line in told
    assert "tokens per second" in told and "sending" not in told


def test_the_largest_ratio_is_of_what_learns_to_what_sampled() -> None:
    """1 for the policy itself; for another, the largest of max(rho, 1 / rho), found by hand."""
    env = environment(WORK)
    policy, other = TransformerPolicy.for_env(env), TransformerPolicy.for_env(env, temperature=0.5)
    agent = PPO(policy, env, n_episodes=WORK.answers, seed=0)
    assert largest_ratio(agent) == pytest.approx(1, abs=1e-5)
    agent.learner = other
    generator = agent.generator.get_state()
    found = largest_ratio(agent)
    agent.generator.set_state(generator)
    rollout = agent.collect()
    with torch.no_grad():
        read = other.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens).log_probs
    rho = (read - rollout.log_probs).exp()
    assert found == pytest.approx(float(torch.maximum(rho, 1 / rho).max())) and found > 1.01


def test_toys_learn_from_as_many_tokens_in_as_many_steps() -> None:
    """Theirs write `steps` tokens of each text, ours about as many; all take epochs x minibatches steps of Adam."""
    work = ToyWork(vocab_size=5, max_new_tokens=4, envs=16, steps=8, epochs=3, minibatches=2, hidden_size=16)
    steps: list[int] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        for name, make in TOYS.items():
            play = make(work)
            steps.clear()
            tokens, _, numbers = play()
            assert len(steps) == work.epochs * work.minibatches, name
            assert abs(tokens / work.tokens - 1) < 0.2 if name == "toy ppo" else tokens == work.tokens
            wanted = size(work.policy(work.environment()))
            if name != "toy sb3 ppo, default mlp":
                assert 0.9 * wanted < numbers["parameters"] <= wanted
    finally:
        hook.remove()


def test_ours_counts_the_tokens_of_the_toy_that_were_written() -> None:
    """Those of the answers, end tokens included, and none of the padding behind."""
    work = ToyWork(vocab_size=5, max_new_tokens=4, envs=4, steps=4, minibatches=2, hidden_size=16)
    env = work.environment()
    agent = PPO(work.policy(env), env, n_episodes=8, seed=0)
    state = agent.generator.get_state()
    rollout = agent.collect()
    agent.generator.set_state(state)
    assert rounds_of(agent, {})().tokens == rollout.mask.sum() < rollout.mask.numel()


@pytest.mark.parametrize("name", sorted(EXACT))
def test_the_oracle_reads_each_state_once(name: str) -> None:
    """However many texts go through it; the gradient once to evaluate and once to learn."""
    work = ExactWork(vocab_size=3, max_new_tokens=3, num_prompts=2)
    tree = enumerate_tree(work.environment())
    play = EXACT[name](work)
    for _ in range(2):
        tokens, _, numbers = play()
        assert tokens == tree.num_completions == 2 * (1 + 2 + 4 * 3)
        assert numbers["states"] == len(tree.prompt) * (2 if "gradient" in name else 1)
    assert (tree.paths()[0] >= 0).sum() > len(tree.prompt)  # control: the texts' states, one by one, are more


def test_the_share_of_a_core_is_that_of_all_rounds() -> None:
    """CPU seconds over seconds, however deep they lie."""
    deep = {"ppo": {"cpu": 1.0, "seconds": 2.0, "phases": {"step": 9.0}}}
    assert share_of_a_core({"small": deep, "cpu": 1.0, "seconds": 3.0}) == pytest.approx(0.4)


def test_prompts_are_drawn_for_samplers() -> None:
    """All prompts have the length that the work says."""
    mdp = get_mdp(environment(WORK))
    texts = sample_prompts(mdp, WORK.answers, 1, torch.Generator().manual_seed(0))
    assert mdp.prompt_width == WORK.prompt and texts.attention_mask[:, : WORK.prompt].all()
    assert collect(environment(WORK), TransformerPolicy.for_env(environment(WORK)), 8).mask.all()


def run(*arguments: str) -> Any:
    """The command, as users type it."""
    command = [sys.executable, "-m", "experiments", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    """Every part, with rates, ratios and the load, in a table and as JSON; the figure in a run of its own."""
    tiny = ["--sizes", "smoke", "--rounds", "1", "--answers", "8", "--answer-tokens", "4", "--out", str(tmp_path)]
    names = ["ppo", "tight loop", "sampling", "sampling, transformers"]
    small = ["--environment-seconds", "0.2", "--exact-tokens", "2", "--peers", str(tmp_path)]
    ended = run(*tiny, "--variants", *names, *small)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == (tmp_path / "bench.txt").read_text().strip()
    found = json.loads((tmp_path / "bench.json").read_text())
    assert list(found["updates"]["smoke"]) == names
    assert set(found["updates"]["smoke"]["ppo"]["phases"]) == set(found["updates"]["smoke"]["tight loop"]["phases"])
    assert list(found["options"]["smoke"]) == ["ppo", "ppo, bfloat16", "ppo, medium", "ppo, compiled", "ppo, graph"]
    variants = [*found["updates"]["smoke"].values(), *found["options"]["smoke"].values(), *found["exact"].values()]
    variants += found["toys"]["variants"].values()
    assert all(variant["peak_mb"] > variant["work_mb"] > 0 for variant in variants)
    for told in ("ppo / tight loop:", "ppo, compiled / ppo:", "toy ppo / toy sb3 ppo:", "CartPoleVectorEnv"):
        assert told in ended.stdout
    assert list(found["machine"]) == ["updates", "options", "toys", "exact", "environments"]
    assert all(f"== {part}: load" in ended.stdout for part in found["machine"])
    assert all(0 < told["share_of_a_core"] < 1.2 for told in found["machine"].values())
    assert found["versions"]["torch"] and found["command"].startswith("python -m experiments bench")
    scaled = run(*tiny, "--scaling", "--scaling-answers", "8", "16", "--scaling-tokens", "2", "--peers", str(tmp_path))
    assert scaled.returncode == 0, scaled.stderr
    assert (tmp_path / "scaling.png").stat().st_size > 0
    assert list(json.loads((tmp_path / "scaling.json").read_text())["scaling"]["answers"]) == ["8", "16"]


@pytest.mark.slow
def test_a_part_alone_on_a_real_model(tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options of the model in a folder, and nothing else: its first ratio is that of bfloat16."""
    monkeypatch.setenv("CXX", "no-such-compiler")  # compiling takes a minute
    model = str(assets / "stories260k")
    ended = run("--parts", "options", "--model", model, "--rounds", "1", "--sizes", "smoke", "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert list(found["options"]) == ["smoke", model] and list(found["machine"]) == ["options"]
    seen = found["options"][model]
    assert list(seen) == ["ppo", "ppo, bfloat16", "ppo, medium"]
    assert seen["ppo"]["largest_ratio"] < 1 + 1e-3 < seen["ppo, bfloat16"]["largest_ratio"]


def test_what_cannot_run_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TRL without its environment, torch.compile without a C++ compiler; where nothing is left, that is told."""
    config = BenchConfig(peers=tmp_path)
    names = ["ppo", "ppo, compiled", "sampling, graph", "trl ppo"]
    monkeypatch.setenv("CXX", sys.executable)
    assert config.here(names) == names[:3]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert config.here(names) == ["ppo"] and config.here(names, "cuda") == ["ppo", "sampling, graph"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert config.here(names) == ["ppo", "trl ppo"]
    with pytest.raises(FlagError, match="'sampling, graph' cannot run without a C.. compiler"):
        BenchConfig(variants=("sampling, graph",))
    with pytest.raises(FlagError, match="'trl ppo' cannot run without TRL"):
        BenchConfig(variants=("trl ppo",), peers=tmp_path / "nowhere")


def test_bad_flags_are_told_in_a_line() -> None:
    """Names that nobody knows."""
    without = [] if torch.cuda.is_available() else [["--parts", "gpu"]]
    for flags in (*without, ["--sizes", "huge"], ["--variants", "magic"], ["--rounds", "0"]):
        ended = run(*flags)
        assert ended.returncode == 2 and flags[0] in ended.stderr and "Traceback" not in ended.stderr
    with pytest.raises(FlagError, match="--model: 'x' is not the folder of a language model"):
        bench(BenchConfig(model="x"))
