"""What a hyperparameter search leaves behind: tables, pictures, and the best hyperparameters ready to train with."""

from __future__ import annotations

import functools
import os
import pickle
import re
import shlex
import shutil
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import optuna
import yaml
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from sb3_isaac.files.atomic import replacing, write


def report(manager: Any, study: Any, write_yaml: Optional[str]) -> None:
    """Print the best trial and write ``logs/ALGO/report_*``: .csv and .pkl as rl_zoo3 does, .yml and two .png.

    :param manager: an :class:`~sb3_isaac.zoo.manager.IsaacExperimentManager`
    :param write_yaml: a hyperparameter file that gets the best hyperparameters, too
    :raises ValueError: no trial was completed
    """
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    print(f"Number of finished trials: {sum(trial.state.is_finished() for trial in trials)} ({len(complete)} completed)")
    name = (
        f"report_{manager.env_name}_{manager.n_trials}-trials-{manager.n_timesteps}-{manager.sampler}-{manager.pruner}"
        f"_{int(time.time())}_{os.getpid()}"
    )
    path = Path(manager.log_folder, manager.algo, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not complete:
        _write_tables(study, path)
        reasons = [trial.user_attrs["reason"] for trial in trials if "reason" in trial.user_attrs]
        last = f"; the last one: {reasons[-1]}" if reasons else ""
        raise ValueError(f"None of {len(trials)} trials was completed, see {path}.csv{last}")
    best = study.best_trial
    print(f"Best trial: {best.number}\nValue: {best.value}\nParams:")
    for key, value in best.params.items():
        print(f"    {key}: {value}")
    comment = (
        f"Found by -optimize: trial {best.number} of {len(trials)} of study {study.study_name}, mean return "
        f"{best.value:.2f} over {manager.n_eval_episodes} episodes"
    )
    entry = dict(best.user_attrs["hyperparams"])
    if manager.env_kwargs:
        entry["env_kwargs"] = dict(manager.env_kwargs)
    files = [Path(f"{path}.yml")] + ([Path(write_yaml)] if write_yaml else [])
    for file in files:
        write(file, new_text(file, manager.env_name.gym_id, entry, comment=comment))
    _write_tables(study, path)
    if not manager.no_optim_plots:
        _draw(study, path)
    print(f"Wrote {path}.csv, .pkl and .yml" + (f", and {write_yaml}" if write_yaml else ""))
    program = "sb3-isaac" if shutil.which("sb3-isaac") else "python -m sb3_isaac.cli"
    device = "" if manager.device == "auto" else f" --device {manager.device}"
    packages = [name for name in getattr(manager.args, "gym_packages", None) or [] if name != "sb3_isaac.zoo"]
    device += f" --gym-packages {' '.join(packages)}" if packages else ""
    flags = f"--algo {manager.algo} --env {manager.env_name.gym_id} -conf {shlex.quote(str(files[-1]))}{device}"
    print(f"Train with the best hyperparameters:\n{program} train {flags}")


def _write_tables(study: Any, path: Path) -> None:
    write(f"{path}.csv", study.trials_dataframe().to_csv())
    write(f"{path}.pkl", pickle.dumps(study))


def _draw(study: Any, path: Path) -> None:
    """Optuna's pictures of the search as files: rl_zoo3 would open them in a browser."""
    try:
        import matplotlib.pyplot as plt  # type: ignore[import-not-found,unused-ignore]
        from optuna.visualization import matplotlib as pictures
    except ImportError:
        print("No pictures of the search: pip install matplotlib")
        return
    plt.switch_backend("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # The evaluator that Optuna 5 has as default; the default before it needs scikit-learn.
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        kinds: Dict[str, Callable[[Any], Any]] = {
            "history": functools.partial(_draw_history, pictures.plot_optimization_history),
            "importances": functools.partial(pictures.plot_param_importances, evaluator=evaluator),
        }
        for name, draw in kinds.items():
            try:
                figure = draw(study).figure
            except (ValueError, RuntimeError) as error:  # too few trials, or all the same
                print(f"No picture of the {name}: {' '.join(str(error).split())}")
                continue
            figure.set_size_inches(9, 5)
            with replacing(f"{path}_{name}.png") as temporary:
                figure.savefig(temporary, dpi=100, format="png", bbox_inches="tight")
            plt.close(figure)
            print(f"Wrote {path}_{name}.png")


def _draw_history(plot_optimization_history: Callable[[Any], Any], study: Any) -> Any:
    """Optuna's history, which has completed trials only, with the others: where they stood when they were ended.

    :return: matplotlib's axes
    """
    axes = plot_optimization_history(study)
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state in (TrialState.PRUNED, TrialState.FAIL)]
    last = {
        trial.number: trial.intermediate_values[max(trial.intermediate_values)] for trial in ended if trial.intermediate_values
    }
    without = [trial.number for trial in ended if trial.number not in last]
    style = {"color": "0.45", "s": 36, "zorder": 2}
    if last:
        axes.scatter(list(last), list(last.values()), marker="x", label="Pruned or failed: last evaluation", **style)
    if without:  # at the bottom, whatever the values of the others
        bottom = axes.get_xaxis_transform()
        axes.scatter(
            without, [0.02] * len(without), marker="|", transform=bottom, label="Pruned or failed before one", **style
        )
    axes.set(ylabel="mean return", title="")
    axes.legend(bbox_to_anchor=(1.02, 1.0), loc="upper left")
    return axes


def compose(text: str, env_id: str, entry: Dict[str, Any], *, comment: str) -> str:
    """The text of a hyperparameter file with the entry of one environment added, or in the place of the one there was.

    :raises ValueError: other entries refer to the one that would be replaced
    """
    before = yaml.safe_load(text) or {}
    body = yaml.safe_dump({env_id: entry}, sort_keys=False, default_flow_style=None, width=120)
    block = f"# {comment}\n{body}"
    # What is replaced: the comments right above the key, and everything down to the next line that is not indented.
    comments, indented = r"(?:^#[^\n]*\n)*", r"(?:^(?:[ \t][^\n]*)?\n)*(?:^[ \t][^\n]*\Z)?"
    pattern = re.compile(rf"{comments}^{re.escape(env_id)}:[^\n]*\n?{indented}", re.MULTILINE)
    if env_id in before:
        new, count = pattern.subn(lambda match: block + "\n" * (match.end() < len(text)), text)
    else:
        new, count = (f"{text.rstrip()}\n\n" if text.strip() else "") + block, 1
    try:
        kept = count == 1 and yaml.safe_load(new) == {**before, env_id: entry}
    except yaml.YAMLError:
        kept = False
    if not kept:
        raise ValueError(f"its entry {env_id} cannot be replaced without changing others, which may refer to it")
    return new


def new_text(path: Path, env_id: str, entry: Dict[str, Any], *, comment: str) -> str:
    """:func:`compose` for a file, which need not exist.

    :raises ValueError: it is no hyperparameter file, or see :func:`compose`
    :raises OSError: it cannot be written
    """
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(f"Hyperparameters cannot be written to {path}: its folder does not exist or cannot be written to.")
    try:
        text = path.read_text() if path.exists() else ""
        if text.strip() and not isinstance(yaml.safe_load(text), dict):
            raise ValueError("it is no hyperparameter file")
        return compose(text, env_id, entry, comment=comment)
    except (ValueError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"Hyperparameters cannot be written to {path}: {problem}; choose another file.") from error
