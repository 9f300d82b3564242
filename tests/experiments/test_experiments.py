"""The command line: runs, folders, resuming, reports, and what it says about bad flags."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from rich.table import Table
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from agents.policy import TransformerPolicy
from experiments.__main__ import EvaluateConfig, evaluate
from experiments.baselines import best_of_n
from experiments.compare import CompareConfig
from experiments.config import AGENTS, EnvFlags, TrialConfig, load_reward
from experiments.console import plain_console
from experiments.errors import FlagError
from experiments.evaluation import Evaluator, normalized_objective, sample_completions
from experiments.report import report, results_table
from experiments.run_folder import open_folder, read_config, write_config
from experiments.statistics import interquartile_mean, paired_difference
from experiments.trial import TrialLog, _agent, initial_policy, read_metrics, run_trial
from tests.helpers.commands import TINY, command, tiny
from tests.helpers.policies import random_policy
from textenv import exact
from textenv.testing import play

needs_no_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")


@pytest.fixture(scope="module")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy at the tiny task's reference."""
    folder = tmp_path_factory.mktemp("initial")
    initial_policy(tiny(), tiny().make_env(), folder)
    return folder


@pytest.mark.parametrize("agent", sorted(AGENTS))
def test_a_trial_writes_what_it_promises(agent: str, tmp_path: Path, initial: Path) -> None:
    """The folder holds flags, versions, a row an update, events, checkpoint, samples and the table's numbers."""
    told: list[int] = []
    config = tiny(agent=agent)
    summary = run_trial(config, tmp_path, initial, told.append)
    rows = read_metrics(tmp_path)
    assert len(rows) == summary["num_updates"] + 1  # and one before learning
    assert sum(told) == summary["num_timesteps"] == rows[-1]["num_timesteps"] >= 400
    assert sum("eval/objective" in row for row in rows) == config.num_evals + 1
    assert read_config(tmp_path, TrialConfig) == config
    assert {"torch", "gymnasium"} <= set(json.loads((tmp_path / "config.json").read_text())["versions"])
    assert list(tmp_path.glob("events.out.tfevents*"))
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 1
    saved = TransformerPolicy.from_pretrained(tmp_path / "checkpoint")
    assert exact.evaluate(config.make_env(), saved).objective == pytest.approx(summary["objective"], abs=1e-6)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_an_interrupted_trial_resumes_where_it_stopped(
    tmp_path: Path, initial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after a checkpoint and some lost updates, then run again: the same rows and the same result."""
    whole = run_trial(tiny(), tmp_path / "whole", initial)
    write = TrialLog.write

    def stop(self: TrialLog, row: dict[str, float]) -> None:
        write(self, row)
        if row["num_updates"] == 5:
            self.checkpoint()
        if row["num_updates"] == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialLog, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run_trial(tiny(), tmp_path / "stopped", initial)
    assert not (tmp_path / "stopped" / "summary.json").exists()
    resumed = run_trial(tiny(), tmp_path / "stopped", initial)
    timeless = ("seconds", "tokens_per_second")
    assert {k: v for k, v in resumed.items() if k not in timeless} == {
        k: v for k, v in whole.items() if k not in timeless
    }
    before, after = (read_metrics(tmp_path / name) for name in ("whole", "stopped"))
    for row in (*before, *after):
        del row["seconds"]
    assert before == after


def test_compare_from_the_command_line(tmp_path: Path) -> None:
    """Agents x seeds in processes: table, curves, samples; again with --resume it only reports; other flags refuse."""
    out = tmp_path / "out"
    flags = ["--env", "textenv/Toy-v0", "--env-args", "vocab_size", "3", "max_new_tokens", "2", "num_prompts", "1"]
    flags += ["--agents", "reinforce", "ppo", "--seeds", "0", "1", "--total-timesteps", "200", "--out", str(out)]
    done = command("compare", *flags)
    assert done.returncode == 0, done.stderr
    assert "optimum" in done.stdout and "reinforce - ppo" in done.stdout
    assert "best of 16" in done.stdout and "tokens to 90%" in done.stdout and "random" not in done.stdout
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((out / "summary.json").read_text())
    trials = [json.loads((out / "ppo" / f"seed-{seed}" / "summary.json").read_text()) for seed in (0, 1)]
    assert content["agents"]["ppo"]["objective"]["value"] == pytest.approx(
        np.mean([trial["objective"] for trial in trials])
    )
    assert trials[0]["objective"] != trials[1]["objective"]

    again = command("compare", *flags)
    assert again.returncode == 2 and "add --resume" in again.stderr
    assert command("compare", *flags, "--resume").returncode == 0
    other = command("compare", *flags, "--resume", "--learning-rate", "0.5")
    assert other.returncode == 2 and "learning_rate" in other.stderr

    run = str(out / "ppo" / "seed-0")
    measured = command("evaluate", "--run", run)
    assert json.loads(measured.stdout)["objective"] == pytest.approx(trials[0]["objective"], abs=1e-6)
    sampled = command("sample", "--run", run, "--num", "2")
    assert sampled.returncode == 0 and sampled.stdout.count("a -> ") == 2


def test_help_lists_the_flags_that_mean_the_same_everywhere() -> None:
    """The command line comes from the dataclasses, their docstrings are the help."""
    text = command("compare", "--help").stdout
    for flag in (
        "--env",
        "--agents",
        "--seeds",
        "--total-timesteps",
        "--device",
        "--out",
        "--resume",
        "--ppo.clip-range",
    ):
        assert flag in text
    assert "None is importance weights without a clip" in text
    assert "--agent " in command("train", "--help").stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"env": "textenv/Text-v0"}, "needs --model, --prompts and --reward"),
        ({"env": "textenv/Text-v0", "model": "m", "prompts": "nowhere.txt", "reward": ["vader"]}, "nowhere.txt"),
        ({"env": "textenv/Text-v0", "model": "m", "prompts": __file__, "reward": ["vadr"]}, "'vadr'"),
        (
            {"env": "textenv/Text-v0", "model": "m", "prompts": __file__, "reward": ["no.such:fn"]},
            "could not be imported",
        ),
        ({"reward": ["vader"]}, "brings its own"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"env": "CartPole-v1"}, "environment of textenv"),
        ({"env": "textenv/Toi-v0"}, "Did you mean: `Toy`"),
        ({"env_args": {"vocabulary": 3}}, "vocabulary"),
        ({"device": "nowhere"}, "nowhere"),
        ({"env": "textenv/Text-v0", "model": "/nowhere", "prompts": __file__, "reward": ["vader"]}, "nowhere"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_loaded(flags: dict[str, object], message: str) -> None:
    """The error names the flag and the value."""
    with pytest.raises(ValueError, match=message):
        EnvFlags(**flags).make_env()  # type: ignore[arg-type]


def test_folders_are_never_overwritten(tmp_path: Path) -> None:
    """A folder in use is refused, and so is resuming what is not there."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        open_folder(tiny(out=tmp_path), "x", "now")
    with pytest.raises(ValueError, match="holds no run to go on with"):
        open_folder(tiny(out=tmp_path / "new", resume=True), "x", "now")
    config = tiny(out=tmp_path / "used")
    assert open_folder(config, "x", "now") == tmp_path / "used"
    with pytest.raises(ValueError, match="add --resume"):
        open_folder(config, "x", "now")
    with pytest.raises(ValueError, match="holds no run"):
        read_config(tmp_path, TrialConfig)
    write_config(config, tmp_path)
    assert read_config(tmp_path, TrialConfig) == config


def test_an_estimate_comes_with_its_error(initial: Path) -> None:
    """Where the tree is too large, sampled J, score and KL are within 5 standard errors of the exact ones."""
    config = tiny()
    env = config.make_env()
    known = Evaluator.for_env(env, 512)
    assert known.solution is not None
    sampled = Evaluator(env, 512, None)
    policy = initial_policy(config, env, initial)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    truth, estimate = known.measure(policy), sampled.measure(policy)
    assert estimate == sampled.measure(policy)
    for name in ("objective", "score", "kl"):
        assert abs(truth[name] - estimate[name]) < 5 * estimate[f"{name}_stderr"]
    baselines = known.baselines()
    assert normalized_objective(known.solution.objective, baselines) == pytest.approx(1.0)
    assert normalized_objective(known.solution.reference_objective, baselines) == pytest.approx(0.0)


def raw_policy(env: object, folder: Path) -> Path:
    """A policy with arbitrary weights, where the one at the reference would take ten seconds to make."""
    random_policy(env, scale=0.1).float().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("hacking", [True, False])
def test_the_gold_score_is_reported_where_there_is_one(
    hacking: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a trial's summary and evaluations, the comparison's summary.json and table, and `evaluate`; else nowhere."""
    flags = {"env": "textenv/RewardHacking-v0", "env_args": {}} if hacking else {}
    configs = [tiny(**flags, total_timesteps=150, num_evals=1, seed=seed) for seed in (0, 1)]
    runs = [tmp_path / "ppo" / f"seed-{seed}" for seed in (0, 1)]
    env = configs[0].make_env()
    initial = raw_policy(env, tmp_path / "initial")
    for config, run in zip(configs, runs, strict=True):
        run_trial(config, run, initial)
    trials = [json.loads((run / "summary.json").read_text()) for run in runs]
    before = sample_completions(env, TransformerPolicy.from_pretrained(initial), [0])
    untrained = {"best of 4": best_of_n(Evaluator.for_env(env, 16), 4)}
    report(tmp_path, {"ppo": trials}, untrained, before, plain_console())
    table = (tmp_path / "report.txt").read_text()
    capsys.readouterr()
    content = json.loads((tmp_path / "summary.json").read_text())
    evaluate(EvaluateConfig(run=runs[0]))
    measured = json.loads(capsys.readouterr().out)
    rows = [row for row in read_metrics(runs[0]) if "eval/objective" in row]

    assert ("gold score" in table) == ("gold_score" in content["agents"]["ppo"]) == hacking
    assert ("gold_score" in content["untrained"]["best of 4"]) == hacking and "best of 4" in table
    assert ("gold_score" in measured) == ("gold_score" in trials[0]) == hacking
    assert [("eval/gold_score" in row) for row in rows] == [hacking] * len(rows) and len(rows) == 2
    assert ("objective/gold_scores" in rows[-1]) == hacking
    baseline = content["baselines"]["reference_gold_score"]
    if not hacking:
        assert baseline is None
        return
    tree = exact.enumerate_tree(env)
    learnt = [exact.evaluate(tree, TransformerPolicy.from_pretrained(run / "checkpoint")) for run in runs]
    gold = [known.gold_score for known in learnt]
    assert [trial["gold_score"] for trial in trials] == pytest.approx(gold, abs=1e-6)
    assert measured["gold_score"] == rows[-1]["eval/gold_score"] == trials[0]["gold_score"] != trials[0]["score"]
    assert content["agents"]["ppo"]["gold_score"]["value"] == pytest.approx(np.mean(gold), abs=1e-6)
    assert baseline == pytest.approx(exact.evaluate_log_probs(tree, tree.ref_log_probs).gold_score)


def summary_of(**numbers: float | None) -> dict[str, Any]:
    """What the table needs of a trial."""
    own = {"objective": 0.11, "score": 0.22, "kl": 0.33, "tokens_per_second": 44.0, "tokens_to_90": None}
    return {"seed": 0} | own | numbers


@pytest.mark.parametrize("gold", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_each_number_of_the_table_stands_in_its_column(gold: bool, known: bool) -> None:
    """With and without gold score and optimum, every row has its values under their heads."""
    extra = {"gold_score": 0.55} if gold else {}
    trials = [summary_of(**extra, normalized_objective=0.5 if known else None, tokens_to_90=x) for x in (10.0, None)]
    untrained = {"best of 3": {"objective": 5.5, "score": 6.6, "kl": 0.7} | ({"gold_score": 8.8} if gold else {})}
    baselines = {"reference": 1.1, "reference_score": 2.2, "reference_gold_score": 3.3 if gold else None}
    agents = {"ppo": trials[:1], "a2c": trials[1:]}
    table = results_table(agents, baselines | {"optimum": 9.9 if known else None}, untrained)
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert len({len(column) for column in cells.values()}) == 1
    rows = ["reference", "best of 3", "ppo", "a2c"] + ["exact optimum"] * known
    told = {name: [column[i] for i in range(len(rows))] for name, column in cells.items()}
    assert told.pop("") == rows
    expected = {
        "objective J": ["1.100", "5.500", "0.110", "0.110", "9.900"],
        "score": ["2.200", "6.600", "0.220", "0.220", ""],
        "gold score": ["3.300", "8.800", "0.550", "0.550", ""],
        "KL to reference": ["0.000", "0.700", "0.330", "0.330", ""],
        "share of the way": ["0.0%", "50.0%", "50.0%", "50.0%", "100.0%"],
        "tokens to 90%": ["", "", "10", "0 of 1 seeds", ""],
        "tokens/s": ["", "", "44", "44", ""],
    }
    if not gold:
        del expected["gold score"]
    if not known:
        del expected["share of the way"], expected["tokens to 90%"]
    assert list(told) == list(expected)
    if known:
        both = results_table({"ppo": trials}, baselines | {"optimum": 9.9}, {})
        assert next(list(c.cells) for c in both.columns if c.header == "tokens to 90%")[1] == "1 of 2 seeds"
    assert told == {name: values[: len(rows)] for name, values in expected.items()}


def test_an_estimated_gold_score_comes_with_its_error(tmp_path: Path) -> None:
    """Sampled E[gold score] is within 5 standard errors of the exact one; a task without gold has none."""
    env = tiny(env="textenv/RewardHacking-v0", env_args={}).make_env()
    policy = TransformerPolicy.from_pretrained(raw_policy(env, tmp_path))
    truth, estimate = Evaluator.for_env(env, 512).measure(policy), Evaluator(env, 512, None).measure(policy)
    assert 0 < estimate["gold_score_stderr"] < 0.1
    assert abs(truth["gold_score"] - estimate["gold_score"]) < 5 * estimate["gold_score_stderr"]
    assert abs(truth["score"] - estimate["gold_score"]) > 5 * estimate["gold_score_stderr"]  # control
    toy = tiny().make_env()
    for evaluator in (Evaluator.for_env(toy, 16), Evaluator(toy, 16, None)):
        assert not any("gold" in name for name in evaluator.measure(random_policy(toy)))


def test_statistics() -> None:
    """The interquartile mean ignores the tails, intervals cover it, pairs must match, one seed has no interval."""
    estimate = interquartile_mean([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0])
    assert estimate.value == pytest.approx(3.5)
    assert estimate.low is not None and estimate.high is not None and estimate.low < 3.5 < estimate.high
    assert interquartile_mean([1.0]).low is None and str(interquartile_mean([1.0])) == "1.000"
    difference = paired_difference([1.0, 2.0, 3.0], [0.5, 1.5, 2.5])
    assert (difference.value, difference.low, difference.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference([1.0], [1.0, 2.0])


def test_evaluations_share_their_prompts(initial: Path) -> None:
    """Policies that are compared answer the same prompts in every batch, however long their answers are."""
    config = tiny(env_args={"vocab_size": 4, "max_new_tokens": 4, "num_prompts": 5})
    env = config.make_env()
    evaluator = Evaluator(env, 200, None)
    shape = GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1, n_positions=16)
    brief, lengthy = (TransformerPolicy(GPT2LMHeadModel(shape)) for _ in range(2))
    with torch.no_grad():
        brief.model.transformer.ln_f.bias += 5 * brief.model.lm_head.weight[0] / 0.02
    one, other = evaluator.rollouts(brief), evaluator.rollouts(lengthy)
    assert len(one) == len(other) == 4
    assert all(a.prompt.equal(b.prompt) for a, b in zip(one, other, strict=True))
    assert any(a.mask.sum() != b.mask.sum() for a, b in zip(one, other, strict=True))
    assert not one[0].prompt.equal(one[1].prompt)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "at least 1, got 0"),
        (["--agents", "random", "best-of-n"], "one of --agents that learns"),
        (["--best-of-n", "0"], "--best-of-n must be at least 1"),
        (["--agents", "sb3-ppo", "--sb3-ppo.n-steps", "0"], "n_steps"),
        (["--seeds", "1", "1"], "must differ"),
        (["--ppo.batch-size", "-1"], "batch_size"),
        (["--ppo.gae-lambda", "7"], "gae_lambda"),
    ],
)
def test_senseless_settings_leave_nothing_behind(flags: list[str], message: str, tmp_path: Path) -> None:
    """One line, status 2, no traceback, no folder in the way of the next try."""
    tokens = "100" if flags else "0"
    toy = ["--env", "textenv/Toy-v0", "--env-args", "vocab_size", "3", "max_new_tokens", "2"]
    done = command("compare", *toy, "--total-timesteps", tokens, *flags, "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_texts_with_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """[/INST] in a prompt is no markup."""
    plain_console(width=80).print(Table("[INST] once [/INST] :smile:"))
    assert "[INST] once [/INST] :smile:" in capsys.readouterr().out


def classifier(folder: Path, labels: list[str]) -> str:
    """A tiny sequence classifier on disk, its tokenizer beside it."""
    from tests.helpers.commands import classifier as random_classifier
    from tests.helpers.commands import tokenizer

    model = random_classifier("gpt2", len(labels))
    if len(labels) > 1:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: i for i, label in enumerate(labels)}
    model.save_pretrained(folder)
    tokenizer(eos_token="[END]").save_pretrained(folder)
    return str(folder)


def test_a_classifier_can_be_the_reward(tmp_path: Path) -> None:
    """By its folder, with #LABEL where there are several; what is wrong with it is said before anything runs."""
    one, two = classifier(tmp_path / "one", ["good"]), classifier(tmp_path / "two", ["bad", "good"])
    assert np.isfinite(load_reward(one)(["a"], ["b"])).all()
    good, bad = (load_reward(f"{two}#{label}")(["a"], ["b"])[0] for label in ("good", "bad"))
    assert good == pytest.approx(-bad) and good != 0
    with pytest.raises(FlagError, match="has the labels .*pass label= one of them, got None"):
        load_reward(two)
    with pytest.raises(FlagError, match="--reward must be 'vader', module:function, or a sequence classifier.*nowhere"):
        load_reward(str(tmp_path / "nowhere"))


def test_a_judge_is_shown_and_not_paid(tmp_path: Path, assets: Path) -> None:
    """--gold-reward is measured beside --reward and changes nothing of what is learned; other tasks refuse the flag."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once upon a time\nThe big dog\n")
    text: dict[str, Any] = {"env": "textenv/Text-v0", "env_args": {}, "model": str(assets / "stories260k")}
    text |= {
        "prompts": str(prompts),
        "reward": ["tests.helpers.tasks:count_words"],
        "max_new_tokens": 4,
        "eval_episodes": 8,
    }
    text |= {"total_timesteps": 100, "n_episodes": 8, "num_evals": 1}
    start = tmp_path / "start"
    initial_policy(tiny(**text), tiny(**text).make_env(), start)
    plain = run_trial(tiny(**text), tmp_path / "plain", start)
    judged = run_trial(tiny(**text, gold_reward="vader"), tmp_path / "judged", start)
    assert "gold_score" in judged and "gold_score" not in plain and judged["score"] == plain["score"]
    weights = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("plain", "judged"))
    assert all(map(torch.equal, *(each.values() for each in weights)))
    assert "eval/gold_score" in read_metrics(tmp_path / "judged")[-1]
    with pytest.raises(FlagError, match="--gold-reward is for --env textenv/Text-v0"):
        tiny(gold_reward="vader").make_env()


def test_an_answer_that_does_not_end_pays() -> None:
    """--missing-eos-penalty is a shaping term of the task."""
    shaping = tiny(missing_eos_penalty=2.5).make_env().unwrapped.mdp.shaping
    env = gym.make("textenv/Toy-v0", **TINY, shaping=shaping)
    assert play(env, 0, [1, 1]).terms["missing_eos"].tolist() == [0.0, -2.5]
    assert play(env, 0, [1, 0]).terms["missing_eos"].tolist() == [0.0, 0.0]


def test_answers_are_shown_while_it_learns(tmp_path: Path, initial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every so many updates, texts as they are; never by default."""
    run_trial(tiny(), tmp_path / "quiet", initial)
    assert "answers of update" not in capsys.readouterr().out
    summary = run_trial(tiny(log_completions=3), tmp_path / "loud", initial)
    said = capsys.readouterr().out
    shown = [int(line.split()[-1]) for line in said.splitlines() if "answers of update" in line]
    assert shown == list(range(3, summary["num_updates"] + 1, 3))
    assert "log-ratio" in said and "prompt" in said


def test_checkpointing_by_a_flag_learns_the_same(tmp_path: Path, initial: Path) -> None:
    """--gradient-checkpointing changes what is kept in memory, not what is learned."""
    plain, checkpointed = (
        run_trial(tiny(gradient_checkpointing=flag), tmp_path / str(flag), initial) for flag in (False, True)
    )
    assert checkpointed["objective"] == pytest.approx(plain["objective"], abs=1e-5)
    env = tiny().make_env()
    assert initial_policy(tiny(gradient_checkpointing=True), env, initial).gradient_checkpointing
    assert not initial_policy(tiny(), env, initial).gradient_checkpointing
    resumed = _agent(tiny(gradient_checkpointing=True), env, tmp_path / "True", initial)
    assert resumed.num_updates > 0 and resumed.policy.gradient_checkpointing


def test_weights_and_biases_by_a_flag(tmp_path: Path, initial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed it is told what TensorBoard is told; where it is not, the flag is refused at once."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FlagError, match=r"needs Weights & Biases: pip install textenv\[wandb\]"):
        tiny(wandb_project="x")
    monkeypatch.undo()
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_trial(tiny(wandb_project="x"), tmp_path, initial)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@needs_no_ray
def test_ray_that_is_not_installed_is_named() -> None:
    """The error says what to install, before anything is made."""
    with pytest.raises(FlagError, match=r"--launcher ray needs Ray: pip install textenv\[ray\]"):
        CompareConfig(launcher="ray")
