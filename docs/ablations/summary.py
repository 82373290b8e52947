"""What the results of scripts/ablate.py say: summaries with confidence intervals, verdicts, tables for the site.

A detail's runs are compared with the base's, the shipped entry. Steps until solved are counted in environment steps, which
the same seeds repeat on the same machine; seconds are shown, but no verdict hangs on them.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from textwrap import indent
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import yaml

DOCS = Path(__file__).resolve().parents[1]
RULE = (
    "A detail is *worse* or *better* where the 95% confidence intervals of the median steps, of the share of seeds that solve "
    "the task, or of the share of evaluations that stay solved do not overlap with those of the shipped entry. Where all "
    "overlap, these seeds show no difference. Of ten seeds the median is the sixth; where all evaluations of all seeds stay "
    "solved, the interval of that share has no width. Seconds are CPU time on a busy machine: compare them within one table."
)
CAPTION = (
    "Blue: the shipped entry, and its interval as a band. Green: better, red: worse, grey: no difference shown. A line "
    "without a dot ends beyond the picture: half of the seeds never solve the task."
)
Interval = Tuple[float, float]
N_RESAMPLES = 10_000


class Summary(NamedTuple):
    """Of the seeds of one detail."""

    n_seeds: int
    n_solved: int
    solved: Interval
    """95%, of the share of seeds that solve"""
    steps: float
    """Median environment steps until solved; infinite where half of the seeds never solve"""
    steps_interval: Interval
    seconds: float
    """Median training seconds of those that solve; NaN: none does"""
    stays: float
    """Share of later evaluations that stay solved; NaN: there are none"""
    stays_interval: Interval


def details() -> Dict[str, Dict[str, Any]]:
    """What docs/ablations.yml describes, by "algo/key", with its ``algo`` and its ``env``."""
    found: Dict[str, Dict[str, Any]] = {}
    for algo, described in yaml.safe_load((DOCS / "ablations.yml").read_text()).items():
        for key, detail in described["details"].items():
            found[f"{algo}/{key}"] = {"algo": algo, "env": described["env"], "overrides": {}, **detail}
    return found


def results(path: Path = DOCS / "ablations.json") -> Dict[str, Any]:
    """What scripts/ablate.py has written."""
    loaded: Dict[str, Any] = json.loads(path.read_text())
    return loaded


def wilson(k: int, n: int) -> Interval:
    """95% confidence interval of a share of which k of n were seen (Wilson, 1927)."""
    z = 1.959964
    centre, half = k / n + z * z / (2 * n), z * math.sqrt(k * (n - k) / n**3 + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def bootstrap(values: Sequence[float], of: Any) -> Interval:
    """95% confidence interval of a statistic by resampling (percentiles; the same random numbers each time)."""
    rows = np.random.default_rng(0).integers(len(values), size=(N_RESAMPLES, len(values)))
    found = np.sort(of(np.asarray(values, dtype=float)[rows], axis=1))
    return float(found[int(0.025 * N_RESAMPLES)]), float(found[int(0.975 * N_RESAMPLES) - 1])


def median(values: Any, axis: int = -1) -> Any:
    """The upper median, which is one of the values: infinite ones have no mean."""
    values = np.sort(values, axis=axis)
    return np.take(values, values.shape[axis] // 2, axis=axis)


def summarise(runs: List[Dict[str, Any]]) -> Summary:
    """Of one detail's seeds."""
    solved = [run for run in runs if run["steps"] is not None]
    steps = [math.inf if run["steps"] is None else run["steps"] for run in runs]
    shares = [run["stayed"] / run["evaluations"] for run in solved if run["evaluations"]]
    return Summary(
        n_seeds=len(runs),
        n_solved=len(solved),
        solved=wilson(len(solved), len(runs)),
        steps=float(median(steps)),
        steps_interval=bootstrap(steps, median),
        seconds=float(median([run["seconds"] for run in solved])) if solved else math.nan,
        stays=float(np.mean(shares)) if shares else math.nan,
        stays_interval=bootstrap(shares, np.mean) if shares else (0.0, 1.0),
    )


def verdict(detail: Summary, base: Summary) -> str:
    """ "worse", "better", "mixed" or "no difference shown", see :data:`RULE`."""
    pairs = [
        (detail.steps_interval, base.steps_interval),  # less is better
        ((-detail.solved[1], -detail.solved[0]), (-base.solved[1], -base.solved[0])),
        ((-detail.stays_interval[1], -detail.stays_interval[0]), (-base.stays_interval[1], -base.stays_interval[0])),
    ]
    worse, better = any(a[0] > b[1] for a, b in pairs), any(a[1] < b[0] for a, b in pairs)
    return "mixed" if worse and better else "worse" if worse else "better" if better else "no difference shown"


def row(title: str, found: Summary, base: Summary) -> str:
    """A line of the table, of a detail or of the base itself."""

    def steps(value: float) -> str:
        return "never" if math.isinf(value) else f"{value:,.0f}"

    low, high = found.steps_interval
    interval = "" if math.isinf(low) else f" ({steps(low)} to {steps(high)})"
    seconds = "" if math.isnan(found.seconds) else f"{found.seconds:.2f}"
    least, most = found.stays_interval
    stays = "" if math.isnan(found.stays) else f"{found.stays:.0%}" + (f" ({least:.0%} to {most:.0%})" if least < most else "")
    said = "" if found is base else verdict(found, base)
    solved = f"{found.n_solved}/{found.n_seeds}"
    return f"| {title} | {solved} | {steps(found.steps)}{interval} | {seconds} | {stays} | {said} |"


COLUMNS = ("", "seeds that solve it", "transitions until solved, median (95%)", "CPU seconds", "stays solved", "verdict")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def table(names: Sequence[str], all_results: Dict[str, Any]) -> str:
    """A Markdown table of these details, under the base's line.

    :raises KeyError: no such detail, or it was not run
    """
    described, first = details(), f"{names[0].split('/')[0]}/base"
    base = summarise(all_results["runs"][first])
    rows = [row(described[first]["title"], base, base)]
    for name in names:
        if name != first:
            rows.append(row(described[name]["title"], summarise(all_results["runs"][name]), base))
    return "\n".join([HEAD, *rows])


def entries(all_results: Dict[str, Any]) -> str:
    """A Markdown table of the shipped entries, a line for each algorithm."""
    lines = HEAD.splitlines()
    for algo in dict.fromkeys(detail["algo"] for detail in details().values()):
        base = summarise(all_results["runs"][f"{algo}/base"])
        lines.append(row(algo.upper(), base, base))
    return "\n".join(line.rsplit("|", 2)[0] + "|" for line in lines)  # without verdicts


ENTRIES = "<!-- entries -->"
ONE = r"<!-- ablations?: (?:[\w/]+,? ?)+ -->"
PLACEHOLDER = re.compile(rf"^( *){ONE}(?:\n+\1{ONE})*$", re.MULTILINE)
NAME = re.compile(r"(?<=ablation: )[\w/]+|(?<=ablations: )\w+")


def fill_in(markdown: str) -> str:
    """Replace ``<!-- ablation: ppo/one_epoch -->`` by a table, several such lines that follow each other by one table for
    each algorithm, ``<!-- ablations: ppo -->`` by the figure of all, their table, and the rule, and ``<!-- entries -->`` by
    the table of the shipped entries. In a folded answer tables are indented as the placeholder is.

    :raises KeyError: an unknown detail, or one without results
    """
    if ENTRIES not in markdown and not PLACEHOLDER.search(markdown):
        return markdown
    known, loaded = details(), results()
    markdown = markdown.replace(ENTRIES, entries(loaded))

    def replace(match: Any) -> str:
        names = NAME.findall(match.group(0))
        shown = []
        for algo in dict.fromkeys(name.split("/")[0] for name in names):
            whole = algo in names
            wanted = [one for one in known if one.startswith(f"{algo}/") and (whole or one in names)]
            missing = [name for name in (*wanted, *names) if "/" in name and name not in loaded["runs"]]
            if missing or not wanted:
                raise KeyError(f"{match.group(0)}: docs/ablations.json does not hold {', '.join(missing) or algo}")
            text = table(wanted, loaded)
            if whole:
                figure = f"![All ablations of {algo.upper()}](../images/ablations_{algo}.png)"
                versions = ", ".join(f"{key} {value}" for key, value in loaded["versions"].items())
                runs = f"{len(loaded['runs'][wanted[0]])} seeds, {loaded['machine']}, {versions}."
                text = f"{figure}\n\n{CAPTION}\n\n{text}\n\n{RULE} {runs}"
            shown.append(text)
        return indent("\n\n".join(shown), match.group(1))

    return PLACEHOLDER.sub(replace, markdown)
