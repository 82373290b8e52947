"""Hyperparameter searches: spaces, trials good and bad, what is left behind. All with tiny trials."""

from __future__ import annotations

import argparse
import gc
import math
import os
import re
import shlex
import warnings
from pathlib import Path
from typing import Any, Dict, List

import optuna
import pytest
import yaml

from sb3_isaac.envs import CartpoleEnv
from sb3_isaac.zoo import entry_files, manager, report, search, spaces, studies
from sb3_isaac.zoo.spaces import Regime
from tests.conftest import ENV_IDS
from tests.zoo.conftest import call, make_manager


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- spaces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", list(ENV_IDS))
@pytest.mark.parametrize("n_envs", [(32,), (4096,), (64, 512)])
def test_spaces_bound_the_cost_and_are_plain(algo: str, n_envs: Any) -> None:
    regime = Regime(n_envs, 200_000, continuous=algo != "dqn")
    entry = yaml.safe_load((entry_files.hyperparams_dir() / f"{algo}.yml").read_text())[ENV_IDS[algo]]
    known = entry_files.known_keys(manager.ALGOS[algo])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = []
    for _ in range(40):
        trial = study.ask()
        found = spaces.sample(algo, trial, regime, entry=entry)
        assert set(found) <= known and found["n_envs"] in n_envs and found["n_timesteps"] == 200_000
        assert yaml.safe_load(yaml.safe_dump(found)) == found
        if algo == "ppo":
            rollout = found["n_steps"] * found["n_envs"]
            assert rollout * 10 <= max(200_000, 80 * max(n_envs))  # 8 steps are the least
            assert rollout // found["n_minibatches"] >= 128 and rollout % found["n_minibatches"] == 0
        else:
            replayed = found["batch_size"] * found["gradient_steps"] / (found["train_freq"] * found["n_envs"])
            assert replayed == pytest.approx(2.0 ** trial.params["replay_ratio_pow"], rel=0.34) and replayed <= 8.1
            assert found["buffer_size"] >= 32 * found["n_envs"]
            linear = str(found["learning_rate"]).startswith("lin_")  # as hyperparameter files write it
            assert linear == (trial.params["lr_schedule"] == "linear")
        seen.append(found)
    for key in ("learning_rate", "gamma", "policy_kwargs"):
        assert len({str(found[key]) for found in seen}) > 10
    # The same space in every trial: samplers that learn need it.
    assert len({str(sorted(trial.distributions.items())) for trial in study.get_trials()}) == 1


def test_zoo_keeps_its_own_spaces_and_managers() -> None:
    import rl_zoo3.exp_manager
    import rl_zoo3.hyperparams_opt

    assert rl_zoo3.exp_manager.HYPERPARAMS_SAMPLER["ppo"] is rl_zoo3.hyperparams_opt.sample_ppo_params
    other = manager.ExperimentManager(argparse.Namespace(), "ppo", "CartPole-v1", "logs", optimize_hyperparameters=True)
    assert type(other).__module__ == "rl_zoo3.exp_manager"


# -- trials ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", list(ENV_IDS))
def test_search_reports_and_writes_what_trains(algo: str, capsys: Any) -> None:
    text = f"# kept\nOther-v0: {{n_envs: 1}}  # kept too\n\n# replaced\n{ENV_IDS[algo]}:\n  n_envs: 3\n\nLast-v0: {{}}\n"
    Path("best.yml").write_text(text)
    hyperparams = {"n_envs": [16, 32], "write_yaml": "best.yml"}
    # No pruner: importances can only be drawn of trials that were completed
    options: Dict[str, Any] = {"no_optim_plots": False, "n_evaluations": 2, "optimization_log_path": "opt", "pruner": "none"}
    experiment = make_manager(algo, hyperparams=hyperparams, n_trials=4, **options)
    experiment.hyperparameters_optimization()
    out = capsys.readouterr().out
    written = Path("best.yml").read_text()
    assert "# kept\n" in written and "# kept too" in written and "# replaced" not in written
    found = yaml.safe_load(written)
    assert set(found) == {"Other-v0", ENV_IDS[algo], "Last-v0"}
    entry = found[ENV_IDS[algo]]
    assert entry["n_envs"] in (16, 32) and entry["env_kwargs"] == {"max_episode_length": 40} and "write_yaml" not in entry
    (table,) = Path("logs", algo).glob("report_*.csv")
    for suffix in (".pkl", ".yml", "_history.png", "_importances.png"):
        assert table.with_name(table.stem + suffix).stat().st_size > 100, out
    assert yaml.safe_load(table.with_suffix(".yml").read_text())[ENV_IDS[algo]] == entry
    assert (Path("opt") / "trial_0" / "best_model.zip").is_file()
    # The printed command trains with exactly these.
    command = out.strip().splitlines()[-1]
    assert command.endswith("-conf best.yml --device cpu") and f"--algo {algo}" in command
    assert call(["train", *shlex.split(command.split(" train ")[1]), "--eval-freq", "-1"]) == 0
    config = next(Path("logs", algo).glob("*/*/config.yml")).read_text()
    saved = yaml.load(config, Loader=yaml.UnsafeLoader)
    assert dict(saved) == entry


def test_bad_trials_are_pruned_with_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four trials really run out of memory, make NaN, take too long, and go well."""
    good = {"n_envs": 32, "n_steps": 8, "n_minibatches": 1, "adaptive_lr_kl": None, "policy_kwargs": {}}
    changes = [{"n_steps": 2**50}, {"learning_rate": 1e30}, {"n_epochs": 10**9}, {}]

    def space(trial: Any, regime: Any) -> Dict[str, Any]:
        experiment.search.trial_timeout = 1e-9 if trial.number == 2 else 600.0
        return {**good, **changes[trial.number]}

    monkeypatch.setitem(spaces.SPACES, "ppo", space)
    experiment = make_manager(n_trials=4, storage="sqlite:///study.db", study_name="s")
    experiment.hyperparameters_optimization()
    trials = studies.load_study("sqlite:///study.db", "s").trials
    assert [trial.state.name for trial in trials] == ["PRUNED", "PRUNED", "PRUNED", "COMPLETE"]
    for trial, reason in zip(trials, ("out of memory", "NaN|nan|finite", "trial_timeout: stopped after")):
        assert re.search(reason, trial.user_attrs["reason"]), trial.user_attrs["reason"]
    assert math.isfinite(trials[3].value) and "reason" not in trials[3].user_attrs


def test_pruner_ends_trials_early(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = make_manager(n_timesteps=4096, n_evaluations=4, pruner="halving", storage="study.log", study_name="s")
    monkeypatch.setattr(optuna.pruners.SuccessiveHalvingPruner, "prune", lambda self, study, trial: trial.number == 1)
    experiment.hyperparameters_optimization()
    trials = studies.load_study("study.log", "s").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED"]
    assert "halving pruner" in trials[1].user_attrs["reason"] and len(trials[1].intermediate_values) == 1
    assert sorted(trials[0].intermediate_values)[-1] == 4 and len(trials[0].intermediate_values) >= 3


def test_the_history_shows_trials_that_were_not_completed() -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra 'plots'").use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as pictures

    study = optuna.create_study(direction="maximize")
    make, states = optuna.trial.create_trial, optuna.trial.TrialState
    for trial in (
        make(value=400.0),
        make(state=states.PRUNED, value=150.0, intermediate_values={1: 90.0, 2: 150.0}),
        make(state=states.PRUNED),  # out of memory before an evaluation
        make(value=450.0),
        make(state=states.FAIL, intermediate_values={1: 70.0}),
        make(state=states.RUNNING, intermediate_values={1: 60.0}),
    ):
        study.add_trial(trial)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        axes = report._draw_history(pictures.plot_optimization_history, study)
    shown = {points.get_label(): points.get_offsets().tolist() for points in axes.collections}
    assert shown["Pruned or failed: last evaluation"] == [[1.0, 150.0], [4.0, 70.0]]
    assert [number for number, _ in shown["Pruned or failed before one"]] == [2.0]
    assert [0.0, 400.0] in shown["Objective Value"] and [3.0, 450.0] in shown["Objective Value"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"Pruned or failed: last evaluation", "Pruned or failed before one", "Best Value"} <= set(legend)
    pyplot.close("all")


def test_a_search_without_a_completed_trial_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = make_manager(hyperparams={"n_envs": 32, "trial_timeout": 1e-9})
    with pytest.raises(ValueError, match="None of 2 trials was completed.*trial_timeout"):
        experiment.hyperparameters_optimization()


def resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
def test_memory_is_flat_and_environments_are_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = make_manager("ddpg", n_trials=50, sampler="random")
    usage: List[float] = []
    made: List[int] = []
    make_batched = CartpoleEnv.make_batched
    monkeypatch.setattr(CartpoleEnv, "make_batched", lambda *args, **kw: made.append(args[1]) or make_batched(*args, **kw))
    run_trial = search.run_trial

    def measured(*args: Any) -> float:
        usage.append(resident_megabytes())
        return run_trial(*args)

    monkeypatch.setattr(search, "run_trial", measured)
    monkeypatch.setattr(spaces, "power_of_two", lambda trial, name, low, high: low)  # all trials of one size
    experiment.hyperparameters_optimization()
    assert len(usage) == 50 and made == [32, 8]
    assert usage[-1] - usage[10] < 10.0, usage
    assert not gc.get_freeze_count()
