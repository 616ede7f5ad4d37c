"""The diagnosis of a stage by its signals: means over its steps, and the first step after which one was not finite.

The loss is a signal of every step. Signals that cost a pass over theta (`state.MONITORED`) would slow down the training
of a small network, so a run that is trained alone on a CPU computes them at some steps only, and each of these steps
stands for several in the means. Stacked runs compute them at every step, but the same steps are counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from clrun.engine import hooks
from clrun.engine.state import COUNTED, MONITORED, NORM, QUADRATIC, Divergence, Signals, TrainState
from clrun.engine.vectorize import Vectorizer
from clrun.strategy import Strategy, Tree

INITIAL_STEPS = 4  # steps at the beginning of a pass, each of which is monitored
INTERVAL = 16  # steps from one monitored step to the next after these


def is_monitored(step: int) -> bool:
    """Return whether step `step` of a pass, counted from 1, is one at which the `MONITORED` signals are computed."""
    return step <= INITIAL_STEPS or step % INTERVAL == 0


def monitoring_weights(steps: int) -> Tensor:
    """Return (S,) float64: how many steps of a pass each monitored step stands for; 0 for the others."""
    return torch.tensor([monitoring_weight(step) for step in range(1, steps + 1)], dtype=torch.float64)


def monitoring_weight(step: int) -> float:
    """Return how many steps of a pass step `step`, counted from 1, stands for; 0 if it is not monitored."""
    if not is_monitored(step):
        return 0.0
    return 1.0 if step <= INITIAL_STEPS else float(INTERVAL)


def monitored_mean(values: Tensor, weights: Tensor) -> float:
    """Return the mean over all steps of values (S,), estimated from the steps with positive weights (S,)."""
    seen = weights > 0
    return (values[seen].double() @ weights[seen] / weights.sum()).item()


# ---------------------------------------------------------------- divergence


def nonfinite_steps(signals: Signals, weights: Tensor) -> list[int]:
    """Return the steps, counted from 1, after which something was not finite: the norm of the gradient where it was
    monitored, or the loss. A loss that is not finite is the result of the step before it."""
    norms = (~signals[NORM].isfinite() & (weights > 0)).nonzero()[:, 0] + 1
    losses = (~signals["loss"].isfinite()).nonzero()[:, 0].clamp(min=1)
    return sorted({*norms.tolist(), *losses.tolist()})


def first_divergence(
    signals: Signals, weights: Tensor, theta_finite: bool, optimizer_finite: bool
) -> Divergence | None:
    """Return where a run diverged, None where it did not; step 0 where the stage had no steps.

    signals {name: (S,)}, weights (S,) of `monitoring_weights`; theta_finite, optimizer_finite: whether theta and the
    optimizer's state are finite at the end of the stage.
    """
    if not signals:
        return None if theta_finite else Divergence(0, True)
    diverged = not theta_finite or not bool(signals["loss"].isfinite().all())
    if not diverged and optimizer_finite:
        return None
    return Divergence(min(nonfinite_steps(signals, weights), default=len(signals["loss"])), diverged)


def all_finite(tree: Tree, vectorizer: Vectorizer) -> Tensor:
    """Return (R,) bool, on the host: whether all tensors of a run are finite, which their device finds out."""
    R = vectorizer.runs
    finite = [v.isfinite().reshape(R, -1).all(1) for v in tree_leaves(tree)]
    return torch.stack(finite).all(0).cpu() if finite else torch.ones(R, dtype=torch.bool)


# ---------------------------------------------------------------- a row of health.csv


def health_means(signals: Signals, weights: Tensor, shares: Sequence[str]) -> dict[str, float]:
    """Return a run's means over the steps of a task, by column of health.csv.

    signals {name: (S,)}; weights (S,) of `monitoring_weights`; shares: signals that are part of the loss, whose ratio
    to it is a column, too.
    """
    if not signals:
        return {"steps": 0}
    monitored = {name: monitored_mean(v, weights) for name, v in signals.items() if name in MONITORED}
    others = ("present", *MONITORED, *COUNTED)
    means = {name: v.double().mean().item() for name, v in signals.items() if name not in others}
    means[NORM] = monitored[NORM]
    if QUADRATIC in monitored:
        means |= {"loss": means["loss"] + monitored[QUADRATIC], "penalty": monitored[QUADRATIC]}
    whole = means["loss"] or 1.0  # a task of a single class has nothing to tell apart: its loss is zero
    ratios = {f"{name}_over_loss": means[name] / whole for name in shares}
    counts = {"steps": len(signals["loss"]), "steps_not_finite": len(nonfinite_steps(signals, weights))}
    return counts | means | ratios


class Diagnosis(NamedTuple):
    """What a stage has done to one run."""

    health: dict[str, float]  # columns of health.csv
    divergence: Divergence | None


def diagnose(
    strategy: Strategy, vectorizer: Vectorizer, current: TrainState, hp: Any, signals: Sequence[Signals]
) -> list[Diagnosis]:
    """Return the diagnosis [r] of every run at the end of a stage. signals: {name: (R, S)} of each pass."""
    of_state = vectorizer.vectorize(lambda current, hp: hooks.health(strategy, current.state, hp))(current, hp)
    of_state = {name: vectorizer.unstack_to_host(v) for name, v in of_state.items()}
    theta_finite, optimizer_finite = all_finite(current.theta, vectorizer), all_finite(current.opt, vectorizer)
    diagnoses = []
    for r in range(vectorizer.runs):
        of_run, weights = signals_of_run(signals, r)
        health = health_means(of_run, weights, strategy.shares) | {name: v[r].item() for name, v in of_state.items()}
        finite = bool(theta_finite[r]), bool(optimizer_finite[r])
        diagnoses.append(Diagnosis(health, first_divergence(of_run, weights, *finite)))
    return diagnoses


def signals_of_run(signals: Sequence[Mapping[str, Tensor]], r: int) -> tuple[Signals, Tensor]:
    """Return run r's signals {name: (S,)} over all passes, and the `monitoring_weights` (S,) of their steps. Steps that
    it did not take, as its task was over before its neighbours', are left out."""
    if not signals:
        return {}, torch.zeros(0)
    taken = [passed["present"][r] for passed in signals]  # (S,) bool each
    joined = {name: torch.cat([p[name][r][t] for p, t in zip(signals, taken, strict=True)]) for name in signals[0]}
    return joined, torch.cat([monitoring_weights(len(t))[t] for t in taken])
