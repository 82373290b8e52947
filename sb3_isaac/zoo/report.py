"""What a hyperparameter search leaves behind: tables, pictures, and the best hyperparameters ready to train with."""

from __future__ import annotations

import os
import pickle
import re
import shlex
import shutil
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List

import optuna
import yaml
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState


def report(search: Any, study: Any) -> None:
    """Print the best trial and write ``logs/ALGO/report_*``: .csv and .pkl as rl_zoo3 does, .yml and two .png.

    :raises ValueError: no trial was completed
    """
    manager = search.manager
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    print(f"Number of finished trials: {sum(trial.state.is_finished() for trial in trials)} ({len(complete)} completed)")
    name = (
        f"report_{manager.env_name}_{manager.n_trials}-trials-{manager.n_timesteps}-{manager.sampler}-{manager.pruner}"
        f"_{int(time.time())}_{os.getpid()}"
    )
    path = Path(manager.log_folder, manager.algo, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    study.trials_dataframe().to_csv(f"{path}.csv")
    Path(f"{path}.pkl").write_bytes(pickle.dumps(study))
    if not complete:
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
    files = [Path(f"{path}.yml")] + ([Path(search.write_yaml)] if search.write_yaml else [])
    for file in files:
        write_entry(file, manager.env_name.gym_id, entry, comment)
    if not manager.no_optim_plots:
        for picture in _draw(study, path):
            print(f"Wrote {picture}")
    print(f"Wrote {path}.csv, .pkl and .yml" + (f", and {search.write_yaml}" if search.write_yaml else ""))
    print(f"Train with the best hyperparameters:\n{train_command(manager, files[-1])}")


def train_command(manager: Any, file: Path) -> str:
    """The one command that trains with the entry in ``file``."""
    program = "sb3-isaac" if shutil.which("sb3-isaac") else "python -m sb3_isaac.cli"
    device = "" if manager.device == "auto" else f" --device {manager.device}"
    return f"{program} train --algo {manager.algo} --env {manager.env_name.gym_id} -conf {shlex.quote(str(file))}{device}"


# -- YAML ------------------------------------------------------------------------------------------------------------


def compose(text: str, env_id: str, entry: Dict[str, Any], comment: str) -> str:
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


def _new_text(path: Path, env_id: str, entry: Dict[str, Any], comment: str) -> str:
    try:
        text = path.read_text() if path.exists() else ""
        if text.strip() and not isinstance(yaml.safe_load(text), dict):
            raise ValueError("it is no hyperparameter file")
        return compose(text, env_id, entry, comment)
    except (ValueError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"Hyperparameters cannot be written to {path}: {problem}; choose another file.") from error


def check_yaml(path: Path, env_id: str) -> None:
    """Whether an entry can be written there, asked before the search and not after it.

    :raises ValueError, OSError: see :func:`write_entry`
    """
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(f"Hyperparameters cannot be written to {path}: its folder does not exist or cannot be written to.")
    _new_text(path, env_id, {"n_envs": 1}, "")


def write_entry(path: Path, env_id: str, entry: Dict[str, Any], comment: str) -> None:
    """Write an entry into a hyperparameter file, whose other entries and comments stay. Made if it does not exist.

    :raises ValueError: the file is no hyperparameter file, or see :func:`compose`
    :raises OSError: the file cannot be written
    """
    new = _new_text(path, env_id, entry, comment)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(new)
    os.replace(temporary, path)


# -- pictures --------------------------------------------------------------------------------------------------------


def _draw(study: Any, path: Path) -> List[str]:
    """Optuna's pictures of the search as files: rl_zoo3 would open them in a browser."""
    try:
        import matplotlib.pyplot as plt  # type: ignore[import-not-found,unused-ignore]
        from optuna.visualization import matplotlib as pictures
    except ImportError:
        print("No pictures of the search: pip install matplotlib")
        return []
    written = []
    plt.switch_backend("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # The evaluator that Optuna 5 has as default; the default before it needs scikit-learn.
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        kinds: Dict[str, Callable[[], Any]] = {
            "history": lambda: pictures.plot_optimization_history(study),
            "importances": lambda: pictures.plot_param_importances(study, evaluator=evaluator),
        }
        for name, draw in kinds.items():
            try:
                figure = draw().figure
            except (ValueError, RuntimeError) as error:  # too few trials, or all the same
                print(f"No picture of the {name}: {' '.join(str(error).split())}")
                continue
            figure.set_size_inches(9, 5)
            figure.savefig(f"{path}_{name}.png", dpi=100, bbox_inches="tight")
            plt.close(figure)
            written.append(f"{path}_{name}.png")
    return written
