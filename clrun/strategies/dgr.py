"""Deep generative replay (Shin et al. 2017): a generator replays what it has learnt of earlier tasks.

    L(theta) = 1/t [ CE(x, y) + V(x) ] + (1 - 1/t) [ mean_{u<t} CE_u(x', y'_u) + V(x') ]       in the t-th task
    x' is drawn from the generator as it was before this task,  y'_u = argmax_{o of task u} z_o(x'; theta*)

V is the loss of the generator, a variational autoencoder (clrun/strategy/generator.py) that is trained beside the
network with the same optimizer. theta* are network and generator before this task, and nothing else is kept. A
generated sample belongs to no task: its label for the old task u is chosen among the outputs that could answer for u
before this task, and CE_u is over those that may answer for u now, so that new outputs learn that it is none of theirs.
Where old tasks share outputs, they are all the same. The generator of Shin et al. is a generative adversarial network;
ours is a variational autoencoder, as in van de Ven et al. 2022. As there, labels are hard, and as many samples are
generated as the batch has.

The network must read a sample as one row of numbers, as the generator does.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import (
    NEGLIGIBLE,
    Autoencoder,
    Aux,
    Batch,
    HealthRows,
    Knobs,
    Network,
    Pool,
    Strategy,
    cross_entropy,
    flat_inputs,
    later_tasks,
    log_softmax,
    normal,
    values_of,
)


@dataclass(frozen=True)
class DGR(Strategy):
    """Deep generative replay.

    Its state is network and generator before the task (4 P bytes in float32, the generator's weights included, which
    are also part of theta).
    """

    generator_units: int = 100
    latent: int = 20

    class State(NamedTuple):
        teacher: Tensor  # (P,) theta*
        moved: Tensor  # () distance between the generator's weights before and after the task

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if flat_inputs(network) is None:
            return "its generator makes samples that are one row of numbers; type model=mlp."
        return None

    @classmethod
    def trainables(cls, network: Network, tasks: int, knobs: Knobs) -> dict[str, Tensor]:
        values = flat_inputs(network)
        if values is None:  # such a network is refused
            return {}
        return Autoencoder(values, knobs["generator_units"], knobs["latent"], floats=False).initial()

    @property
    def generator(self) -> Autoencoder:
        """The generator of samples of this data set."""
        return Autoencoder.of_samples(self.data.images, self.generator_units, self.latent)

    def init(self, theta: Tensor) -> State:
        return self.State(theta, theta.new_zeros(()))

    def inputs(self, values: Tensor) -> Tensor:
        """Return rows of numbers (B, D) as samples (B, ...) that the network can be given."""
        x = values.view(-1, *self.data.images.shape[1:])
        return x if self.generator.floats else x * 255 * self.data.scale + self.data.shift

    def loss(self, theta: Tensor, state: State, hp: Any, batch: Batch) -> tuple[Tensor, Aux]:
        """Return the weighted losses of network and generator, on the batch and on what is generated."""
        e = normal(batch.noise[:, 0], 3 * len(batch.x) * self.latent).to(theta)
        drawn, *noises = e.view(len(batch.x), -1).chunk(3, 1)
        old = self.generator.generated(self.net.layout.view(state.teacher), drawn).detach()
        x = torch.cat([batch.x, self.inputs(old)])
        z = self.net(theta, x)
        fit, replay = cross_entropy(z[: len(old)], batch), self.replay_loss(z[len(old) :], x[len(old) :], state, batch)
        pieces = self.net.layout.view(theta)
        both = zip((values_of(self.data, batch.x), old), noises, strict=True)
        of_batch, of_old = (batch.mean(self.generator.loss(pieces, values, noise)) for values, noise in both)
        w = torch.ones_like(fit) / (batch.stage + 1)
        replayed = torch.where(batch.stage > 0, (1 - w) * (replay + of_old), 0)
        signals = {"replay_loss": (batch.stage > 0) * replay, "generator_loss": of_batch}
        return w * (fit + of_batch) + replayed, signals

    def replay_loss(self, z: Tensor, x: Tensor, state: State, batch: Batch) -> Tensor:
        """Return the mean over old tasks u of CE_u () for what is generated, x (B, ...) with logits z (B, C)."""
        before, now = (batch.tables.active[s[None]][0] for s in ((batch.stage - 1).clamp(min=0), batch.horizon))
        past = (torch.arange(len(before), device=before.device) < batch.stage).to(z)
        teacher = self.net(state.teacher, x)[:, None].masked_fill(~before, -torch.inf)  # (B, T, C)
        label = teacher.argmax(-1, keepdim=True)
        ce = -log_softmax(z[:, None], now).gather(-1, label)[..., 0]  # (B, T)
        return batch.mean(ce @ past / past.sum().clamp(min=1))

    def after_phase(self, phase: str, theta: Tensor, state: State, hp: Any, pool: Pool) -> tuple[Tensor, State]:
        """Return theta, and the state with theta as theta* of the next task."""
        of_generator = self.net.layout.where(lambda name: name in self.generator.layout.shapes, theta)
        return theta, self.State(theta, torch.where(of_generator, theta - state.teacher, 0).norm())

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        return {"generator_moved": state.moved}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        found = []
        if health and all(row["generator_moved"] == 0 for row in health):
            found.append("no step ever changed a weight of the generator, so it was never trained")
        later = later_tasks(health)
        if later and all(row["replay_loss"] <= NEGLIGIBLE * row["loss"] for row in later):
            found.append("what was generated never had a loss above 1e-12 of the whole: this is finetuning")
        return found
