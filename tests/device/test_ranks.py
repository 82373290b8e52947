"""Several processes that train one model: what they compute against what one process computes, and how they end."""

from __future__ import annotations

import copy
import io
import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from torch import nn

from sb3_isaac import DDPG, DQN, PPO, VecNormalize
from sb3_isaac.buffers.replay_buffer import ReplaySamples
from sb3_isaac.device import cuda_graph, ranks
from sb3_isaac.envs.checkpoints import write_checkpoint
from sb3_isaac.envs.running_mean_std import RunningMoments
from tests.conftest import ENV_IDS, make_env, parameters
from tests.off_policy.conftest import feed, random_samples, sb3_options, start
from tests.ppo.conftest import OwnExtractor
from tests.ranks_helpers import returned, run_ranks

N_STEPS, BATCH, N_ALL = 8, 12, 12
"""Of PPO; and environments of all ranks together"""
OWN = {"features_extractor_class": OwnExtractor, "net_arch": [8]}
PLAIN = {"net_arch": [8], "activation_fn": nn.ReLU}
CASES: Dict[str, Dict[str, Any]] = {
    "ppo": {"policy_kwargs": PLAIN, "adaptive_lr_kl": 1e-3, "ent_coef": 0.01, "n_epochs": 3},
    "ppo, autograd": {"policy_kwargs": OWN, "target_kl": 1e-3, "max_grad_norm": 0.3, "n_epochs": 3},
    "dqn": {"policy_kwargs": PLAIN, "max_grad_norm": 0.1},
    "dqn, autograd": {"policy_kwargs": OWN, "max_grad_norm": 0.1},
    "ddpg": {"policy_kwargs": PLAIN},
    "ddpg, autograd": {"policy_kwargs": OWN},
}


def make_model(case: str, n_envs: int, n_ranks: int = 1, normalize: bool = False, **options: Any) -> Any:
    """A small one. ``n_ranks`` times its minibatch is what a gradient is the mean of."""
    algo = case[:4].strip(",")
    env = make_env(ENV_IDS[algo], n_envs, max_episode_length=20)
    env = VecNormalize(env) if normalize else env
    options = {**copy.deepcopy(CASES[case]), **options}  # SB3 writes into policy_kwargs
    if algo == "ppo":
        settings = {"n_steps": N_STEPS, "batch_size": BATCH // n_ranks, "learning_rate": 3e-3, "seed": 3, "device": "cpu"}
        return PPO("MlpPolicy", env, **{**settings, **options})
    settings = sb3_options(algo, batch_size=BATCH // n_ranks, gradient_steps=3, learning_starts=50)
    return {"dqn": DQN, "ddpg": DDPG}[algo]("MlpPolicy", env, **{**settings, **options})


# -- the same update as one process's ----------------------------------------------------------------------------------


def ppo_rows(rank: int, epoch: int, n_envs: int) -> th.Tensor:
    """A rank's order of its transitions in an epoch: pairs of step and environment, one row of (n_steps * n_envs, 2) each."""
    order = th.randperm(N_STEPS * n_envs, generator=th.Generator().manual_seed(100 * epoch + rank))
    return th.stack((order // n_envs, order % n_envs), 1)


def fix_order(model: Any, rank_list: List[int], n_ranks: int) -> None:
    """Let minibatches consist of those that the given ranks have, one after the other."""
    n, per_rank, epochs = N_ALL // n_ranks, BATCH // n_ranks, [0]

    def shuffled(batch_size: int) -> Any:
        epochs[0] += 1
        found = []
        for i in range(0, N_STEPS * n, per_rank):
            rows = []
            for place, rank in enumerate(rank_list):
                step, env = ppo_rows(rank, epochs[0], n)[i : i + per_rank].unbind(1)
                rows.append(step * model.n_envs + env + n * place)
            found.append(th.cat(rows))
        return tuple(found)

    model.rollout_buffer.shuffled = shuffled


def joined(parts: List[ReplaySamples], gradient_steps: int) -> ReplaySamples:
    """Minibatches of several ranks as larger ones: for each gradient step those of all."""
    cut = [[None if x is None else x.chunk(gradient_steps) for x in part] for part in parts]
    columns = []
    for column in zip(*cut):
        pieces = None if column[0] is None else [piece for step in zip(*column) for piece in step]
        columns.append(None if pieces is None else th.cat(pieces))
    return ReplaySamples(*columns)


def update(model: Any) -> th.Tensor:
    model.train() if isinstance(model, PPO) else model.train(3, model.batch_size)
    return parameters(model)


def alone(case: str, n_ranks: int) -> Dict[str, Any]:
    """Where the ranks begin, what they update from, and what one process makes of it all."""
    model = make_model(case, N_ALL)
    if isinstance(model, PPO):
        model.learn(N_STEPS * N_ALL)
        data: Any = [column.clone() for column in (model.rollout_buffer.tensors + (model.rollout_buffer.distributions,))]
        fix_order(model, list(range(n_ranks)), n_ranks)
    else:
        start(model)
        data = [random_samples(case[:4].strip(","), 3 * BATCH // n_ranks, seed=i) for i in range(n_ranks)]
        feed(model, joined(data, 3), BATCH)
    before = {"parameters": model.get_parameters(), "lr": getattr(model, "adapted_lr", None)}
    before = th.load(_saved(before), weights_only=False) if hasattr(th, "compile") else th.load(_saved(before))
    return {**before, "data": data, "after": update(model), "losses": logged(model), "path": model.path}


def _saved(state: Any) -> Any:
    file = io.BytesIO()
    th.save(state, file)
    file.seek(0)
    return file


def logged(model: Any) -> Dict[str, float]:
    names = ("policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction", "entropy_loss", "explained_variance", "loss")
    found = {name: model.logger.name_to_value.get(f"train/{name}") for name in names}
    return {name: float(value) for name, value in found.items() if value is not None}


def together(rank: int, n_ranks: int, whole: Dict[str, Dict[str, Any]]) -> Dict[str, Any]:
    """In a rank: a training, which must leave the same on all ranks, then the update that one process has done."""
    found: Dict[str, Any] = {}
    for case, one in whole.items():
        n_envs = N_ALL // n_ranks
        model = make_model(case, n_envs, n_ranks, normalize="autograd" not in case)
        model.learn(2 * N_STEPS * N_ALL if isinstance(model, PPO) else 60 + 11 * N_ALL)
        trained = parameters(model)
        statistics = [] if model.get_vec_normalize_env() is None else [model.get_vec_normalize_env().obs_rms.mean.copy()]
        model = make_model(case, n_envs, n_ranks)
        with model._parallel.learning(model, {}):
            if isinstance(model, PPO):
                model._setup_learn(N_STEPS * N_ALL)
                mine = slice(rank * n_envs, (rank + 1) * n_envs)
                model.rollout_buffer.keep_distributions(one["data"][-1].shape[2])
                views = model.rollout_buffer.tensors + (model.rollout_buffer.distributions,)
                for view, column in zip(views, one["data"]):
                    view.copy_(column[:, mine])
                model.rollout_buffer.pos, model.rollout_buffer.full = N_STEPS, True
                fix_order(model, [rank], n_ranks)
            else:
                start(model)
                feed(model, one["data"][rank], model.batch_size)
            model.set_parameters(one["parameters"])
            model.adapted_lr = one["lr"]
            found[case] = {"trained": trained, "statistics": statistics, "after": update(model), "losses": logged(model)}
            found[case].update(steps=model.num_timesteps, path=model.path, losses=logged(model))
    found["moments"] = merged_moments(rank)
    return found


def merged_moments(rank: int) -> th.Tensor:
    """Three batches in each rank, merged twice."""
    moments = RunningMoments(2, th.device("cpu"), 1e-8)
    base = th.stack((moments.mean, moments.var, moments.count))
    for i, batch in enumerate(batches(rank)):
        moments.update(batch)
        if i > 0:
            moments.merge(base)
            base = th.stack((moments.mean, moments.var, moments.count))
    return base


def batches(rank: int) -> List[th.Tensor]:
    generator = th.Generator().manual_seed(rank)
    return [100.0 + rank + th.randn(2, 5, generator=generator, dtype=th.float64) for _ in range(3)]


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_ranks_compute_the_update_of_one_process(n_ranks: int) -> None:
    whole = {case: alone(case, n_ranks) for case in CASES}
    results = returned(run_ranks(n_ranks, together, n_ranks, whole))
    for case, one in whole.items():
        for result in results:
            mine = result[case]
            assert mine["path"] == one["path"] and ("without autograd" in one["path"]) == ("autograd" not in case)
            assert th.equal(mine["trained"], results[0][case]["trained"])
            assert [x.tolist() for x in mine["statistics"]] == [x.tolist() for x in results[0][case]["statistics"]]
            assert float((mine["after"] - one["after"]).abs().max()) < 1e-5, case
            assert mine["losses"] == pytest.approx(one["losses"], rel=1e-3, abs=1e-5), case
        moved = (one["after"] - th.cat([p.flatten() for p in one["parameters"]["policy"].values()])).abs().max()
        assert moved > 1e-3, case
    moments = RunningMoments(2, th.device("cpu"), 1e-8)
    for batch in (batch for rank in range(n_ranks) for batch in batches(rank)):
        moments.update(batch)
    for result in results:
        th.testing.assert_close(result["moments"], th.stack((moments.mean, moments.var, moments.count)), rtol=1e-10, atol=0)


# -- how trainings end, and go on --------------------------------------------------------------------------------------


class At(BaseCallback):
    """Does something on one rank, or on all, at one of the steps."""

    def __init__(self, step: int, what: str, rank: int, path: Any = None) -> None:
        super().__init__()
        self.step, self.what, self.rank, self.path = step, what, rank, path

    def _on_step(self) -> bool:
        if self.n_calls == self.step and self.rank in (ranks.rank(), -1):
            if self.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "nan":
                self.training_env.unwrapped.tensor_env.dof_state.fill_(float("nan"))
            if self.what == "signal":
                self.model._checkpoints.end(partial(write_checkpoint, self.model, self.path))  # type: ignore[attr-defined]
            if self.what == "save":
                self.model.save_checkpoint(self.path)  # type: ignore[attr-defined]
            return self.what != "stop"
        return True


def seen(model: Any) -> List[Any]:
    """What must be the same on all ranks, and then what must not."""
    return [model.num_timesteps, parameters(model), model._last_obs]


def endings(rank: int, folder: Path) -> Dict[str, Any]:
    """Trainings that end early for all because of what happens on one rank."""
    found: Dict[str, Any] = {}
    for case in ("ppo", "dqn"):
        model = make_model(case, 6, 2, normalize=True)
        saver = CheckpointCallback(5, str(folder / f"of SB3, rank {rank}"))
        model.learn(4000, callback=[At(11, "stop", rank=1), saver])
        found[case, "stop"] = seen(model)
        # A checkpoint at step 20, and the rest of the training with and without an interruption
        whole = make_model(case, 6, 2, normalize=True)
        whole.learn(2400, callback=[At(20, "save", -1, folder / case / "saved"), At(10**6, "stop", 0)])
        found[case, "whole"] = seen(whole)
        env = make_env(ENV_IDS[case], 6, seed=8, max_episode_length=20)
        resumed = type(whole).resume(folder / case, env, device="cpu")
        found[case, "resumed at"] = resumed.num_timesteps
        resumed.learn(callback=[At(10**6, "save", -1), At(10**6, "stop", 0)])
        found[case, "resumed"] = seen(resumed)
        model = make_model(case, 6, 2)
        model._checkpoints.at_end = partial(write_checkpoint, model, folder / f"{case} ended")
        with pytest.raises(KeyboardInterrupt):
            model.learn(4000, callback=At(11, "signal", 1, folder / f"{case} ended"))
        found[case, "signal"] = seen(model)
    with pytest.raises(ValueError, match="n_envs must be the same on all ranks, and is 6, 7 on ranks 0 to 1"):
        make_model("ppo", 6 + rank, 2).learn(100)
    return found


@pytest.mark.slow
def test_what_happens_on_one_rank_ends_all(tmp_path: Path) -> None:
    for case in ("ppo", "dqn"):
        (tmp_path / case).mkdir()
    one, other = returned(run_ranks(2, endings, tmp_path))
    for case in ("ppo", "dqn"):
        for what in ("stop", "whole", "resumed", "signal"):
            assert one[case, what][0] == other[case, what][0], (case, what)
            assert th.equal(one[case, what][1], other[case, what][1]), (case, what)
            assert not np.array_equal(one[case, what][2], other[case, what][2])
        assert 11 * 12 <= one[case, "stop"][0] <= 12 * 100 and one[case, "signal"][0] < 4000
        for mine in (one, other):
            assert 200 < mine[case, "resumed at"] <= 300
            for whole, resumed in zip(mine[case, "whole"], mine[case, "resumed"]):
                assert np.array_equal(whole, resumed), case
        for name in (f"{case}/saved", f"{case} ended"):
            assert Path(tmp_path, f"{name}.zip").is_file()
            part = Path(tmp_path, name).with_name("rank1") / Path(name).name
            assert part.with_name(f"{part.name}_state.pt").is_file() and not part.with_suffix(".zip").exists()
    assert (tmp_path / "of SB3, rank 0").is_dir() and not (tmp_path / "of SB3, rank 1").exists()


def ends_with(rank: int, what: str, case: str) -> Any:
    model = make_model(case, 6, 2)
    try:
        model.learn(10_000, callback=At(21, what, rank=1))
    except RuntimeError as error:
        assert isinstance(error, ranks.RankLost)
        return "lost", str(error), seen(model)
    except FloatingPointError as error:
        return "nan", str(error), seen(model)
    return "trained", "", seen(model)


def test_a_rank_that_dies_or_meets_nan_ends_all() -> None:
    survivor, victim = run_ranks(2, ends_with, "kill", "ppo")
    assert victim == ("died", None) and survivor[0] == "returned" and survivor[1][0] == "lost"
    assert survivor[1][1].startswith(ranks.LOST) and th.isfinite(survivor[1][2][1]).all()
    for case in ("ppo", "dqn"):
        found = returned(run_ranks(2, ends_with, "nan", case))
        assert [kind for kind, *_ in found] == ["nan", "nan"]
        assert re.search("Rank 1: The observation of environment 0 was nan", found[0][1]), found[0][1]
        assert all(th.isfinite(end[1]).all() for *_, end in found)
        assert th.equal(found[0][2][1], found[1][2][1])


def refusal(rank: int, case: str) -> str:
    if case == "stock":
        model: Any = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, device="cpu")
    elif case == "episodes":
        model = make_model("dqn", 1, train_freq=(1, "episode"))
    else:
        model = make_model("ppo", 4, policy_kwargs={"features_extractor_class": WithBatchNorm})
    with pytest.raises(ValueError) as error:
        model.learn(100)
    return str(error.value)


class WithBatchNorm(OwnExtractor):
    def __init__(self, space: Any) -> None:
        super().__init__(space)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(super().forward(observations))


@pytest.mark.parametrize(
    "case, sentence",
    [
        ("stock", "Several ranks train in tensors only, start one process: The environment is no IsaacVecEnv"),
        ("batch norm", "BatchNorm normalises by the minibatch of one rank"),
        ("episodes", "train_freq in episodes needs a single environment, here are 2: count in steps."),
    ],
)
def test_what_cannot_be_shared_out_is_said(case: str, sentence: str) -> None:
    assert all(sentence in said for said in returned(run_ranks(2, refusal, case)))


def test_one_process_alone_talks_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ranks.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert (ranks.world_size(), ranks.rank(), ranks.own_seed(5), ranks.own_seed(None)) == (1, 0, 5, None)
    monkeypatch.setattr(th.distributed, "init_process_group", None)
    x = th.ones(3)
    ranks.join()
    ranks.mean_(x)
    assert x.tolist() == [1.0, 1.0, 1.0] and ranks.gather(3) == [3] and ranks.from_first(4) == 4


def test_a_graph_is_cut_where_ranks_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is captured before, the action, and what is captured after it, in this order and at each replay."""
    done: List[Any] = []

    class Graph:
        def pool(self) -> int:
            return 7

        def replay(self) -> None:
            done.append(("replay", self))

    class Capture:
        def __init__(self, graph: Graph, stream: str, pool: int = 0) -> None:
            self.graph, self.pool = graph, pool
            assert stream == "of GPU 1"

        def __enter__(self) -> None:
            done.append(f"begin in pool {self.pool}")

        def __exit__(self, *error: Any) -> None:
            done.append("end")

    monkeypatch.setattr(th.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(th.cuda, "graph", Capture)
    monkeypatch.setattr(th.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(cuda_graph, "_stream", lambda device: f"of GPU {device}")

    def function(x: th.Tensor) -> th.Tensor:
        done.append("before")
        cuda_graph.between_graphs(lambda: done.append("talk"))
        done.append("after")
        return x

    graph = cuda_graph.CudaGraph(function, [th.ones(2)])
    assert done == ["begin in pool 0", "before", "end", "begin in pool 7", "after", "end"]
    done.clear()
    for _ in range(2):
        assert graph(th.zeros(2)).tolist() == [0.0, 0.0]
    first, talk, second = done[:3]
    assert talk == "talk" and first[0] == second[0] == "replay" and first[1] is not second[1]
    assert done == [first, "talk", second] * 2
    done.clear()
    cuda_graph.between_graphs(lambda: done.append("talk"))
    assert done == ["talk"]
