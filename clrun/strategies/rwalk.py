"""Riemannian walk (Chaudhry et al. 2018, "Riemannian walk for incremental learning", eqs. 5 to 9): EWC and SI together.

    F_i <- decay F_i + (1 - decay) g_i^2      a running mean over the steps of all tasks (EWC++), decay = 1 - alpha
    s_i <- s_i + relu(-sum g_i dtheta_i) / (F_i (change of theta_i)^2 / 2 + damping)      every `interval` steps
    S_i <- (S_i + s_i) / 2      at the end of a task, for the first one s_i; then s_i begins anew
    L(theta) = L_t(theta) + lambda * sum_i (F_i / max F + S_i / max S) (theta_i - theta*_i)^2      no 1/2

where theta* are the parameters at the end of the last task, F and S those of that moment, g the gradient of the loss
without the penalty, and the sum and the change are over the last `interval` steps. Both terms are scaled to [0, 1], as
in the paper. g is a batch's gradient, so F depends on the batch size, as in the authors' code. The alpha of the paper
weighs the new value and is 0.9 in its code; decay is 0.9 by default, so that F is a mean over about ten batches. The
steps of a task after the last multiple of `interval` enter F and not S.

As far as we read the authors' code, it is not the paper in four points: the denominator is F_i (change)^2 + damping,
without the 1/2; S_i <- S_i + (S_i + s_i) / 2; both terms are scaled to [0, 1] by minimum and maximum; and F is renewed
every 10 or 50 steps, from a sum of squares that begins anew with each task.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import Aux, Batch, HealthRows, Knobs, Pool, Quadratic, QuadraticPenalty


@dataclass(frozen=True)
class RWalk(QuadraticPenalty):
    """Riemannian walk.

    Its state is seven vectors (P,), so 28 P bytes in float32, however many tasks there are. It needs no pass over the
    data at the end of a task.
    """

    decay: float = 0.9
    damping: float = 1e-3
    interval: int = 10

    class Hyper(NamedTuple):
        lambda_: Tensor  # () strength of the penalty

    class State(NamedTuple):
        anchor: Tensor  # (P,) theta*
        importance: Tensor  # (P,) F / max F + S / max S
        fisher: Tensor  # (P,) F
        path: Tensor  # (P,) - sum g dtheta since `marked`
        marked: Tensor  # (P,) theta at the last multiple of `interval` steps
        score: Tensor  # (P,) s, of the present task
        past_score: Tensor  # (P,) S, of the tasks learnt
        steps: Tensor  # () int64: of the present task

    def init(self, theta: Tensor) -> State:
        zeros, steps = torch.zeros_like(theta), torch.zeros((), dtype=torch.long, device=theta.device)
        return self.State(theta, zeros, zeros, zeros, theta, zeros, zeros, steps)

    def quadratic(self, state: State, hp: Hyper) -> Quadratic:
        """Return lambda sum_i importance_i (theta_i - theta*_i)^2."""
        return Quadratic(2 * hp.lambda_, state.anchor, state.importance)

    def gradient(self, theta: Tensor, state: State, hp: Hyper, batch: Batch) -> tuple[Tensor, Tensor, Aux]:
        """Return the gradient of L_t alone; aux hands it on to F and the path."""
        g, fit, aux = super().gradient(theta, state, hp, batch)
        return g, fit, aux | {"fit_gradient": g}

    def after_move(self, state: State, before: Tensor, after: Tensor, aux: Aux) -> State:
        """Return the state with the step in F and the path, and at every multiple of `interval` steps in s."""
        g, steps = aux["fit_gradient"], state.steps + 1
        fisher = torch.lerp(g.square(), state.fisher, self.decay)
        path = torch.addcmul(state.path, g, after - before, value=-1)
        due = steps % self.interval == 0
        gained = path.relu() / (fisher * (after - state.marked).square() / 2 + self.damping)
        return state._replace(
            fisher=fisher,
            path=torch.where(due, 0, path),
            marked=torch.where(due, after, state.marked),
            score=torch.where(due, state.score + gained, state.score),
            steps=steps,
        )

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Hyper, pool: Pool) -> tuple[Tensor, State]:
        """Return theta, and the state with new importance and anchor, ready for the next task."""
        past = torch.where(pool.stage > 0, (state.past_score + state.score) / 2, state.score)
        zeros = torch.zeros_like(theta)
        importance = to_unit(state.fisher) + to_unit(past)
        return theta, self.State(
            theta, importance, state.fisher, zeros, theta, zeros, past, torch.zeros_like(state.steps)
        )

    def importance(self, state: State) -> Tensor:
        return state.importance

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        """Return what is reported of the importance, and the largest S ()."""
        return super().health(state, hp) | {"score_max": state.past_score.max()}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        of_penalty = super().warnings(health, knobs)
        # S after the last task pulls in none; a row from before there was the column says nothing
        pulled = [row.get("score_max") for row in health[:-1]]
        if of_penalty or knobs["lambda"] == 0 or not pulled or any(score != 0 for score in pulled):
            return of_penalty
        few = f"the path of the loss (S) stayed 0, as where tasks have fewer steps than interval={knobs['interval']}"
        return [f"{few}: this is a pull by the Fisher information alone, as in EWC++; type a smaller interval"]


def to_unit(values: Tensor) -> Tensor:
    """Return values (P,) of at least 0 divided by their largest; 0 where all are 0."""
    return values / values.max().clamp(min=torch.finfo(values.dtype).tiny)
