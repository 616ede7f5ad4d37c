"""Generative classifier (van de Ven, Li & Tolias 2021): an autoencoder for each class, and the likeliest class answers.

    theta_c <- theta_c + delta_c 1[the batch has a sample of class c]        L(theta) = mean over the batch of V_y(x)
    logit_c(x) = log 1/S sum_s p_c(x | z_s) p(z_s) / q_c(z_s | x)            z_s ~ q_c(z | x)

V_c is the loss of class c's variational autoencoder (clrun/strategy/generator.py), and delta the step of the optimizer.
The weights of a class move where a sample of it is learnt and nowhere else: nothing is forgotten but what new classes
take from old ones. All classes have the same prior. The S standard normal numbers behind the z_s are drawn once for a
run, so that an answer does not depend on the samples beside it.

The paper trains the classes one after the other, each with an optimizer of its own and batches of its own. Here the
classes of a task share batches and Adam's counter of steps, whose bias correction makes the first steps of a class
longer if it comes late; optimizer.reset=true starts it anew with each task.

p_c(x | z) is that of the loss, for pixels a Bernoulli distribution. The authors' code trains with this one and answers
with another, a normal distribution of variance 1 around the decoded picture, which costs 1 to 2 points on MNIST.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from clrun.strategy import (
    Autoencoder,
    Aux,
    Batch,
    HealthRows,
    Knobs,
    Network,
    Strategy,
    flat_inputs,
    inside_transform,
    lowered,
    normal,
    one_hot,
    values_of,
)

# Nats: latent variables that say less about a sample, in every task, say nothing.
MEANINGLESS = 1e-3


@dataclass(frozen=True)
class GenerativeClassifier(Strategy):
    """A generative classifier.

    The weights of its autoencoders are part of theta, which the network itself adds to without being read. Its state is
    4 (C + S L) bytes in float32, for C outputs, S importance samples and L latent variables.
    """

    smooths_labels: ClassVar[bool] = False  # a label says which autoencoder a sample trains
    answering_floats: ClassVar[int] = Autoencoder.likelihood_floats

    autoencoder_units: int = 85
    latent: int = 5
    importance_samples: int = 50

    class State(NamedTuple):
        samples: Tensor  # (C,) that each output's autoencoder was trained with, each as often as it came
        noise: Tensor  # (S, L) standard normal numbers

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        if flat_inputs(network) is None:
            return "its autoencoders read samples as one row of numbers, and no network; type model=linear."
        return None

    @classmethod
    def trainables(cls, network: Network, tasks: int, knobs: Knobs) -> dict[str, Tensor]:
        values = flat_inputs(network)
        if values is None:  # such a network is refused
            return {}
        outputs = len(network.parameters()["head.weight"])
        one = Autoencoder(values, knobs["autoencoder_units"], knobs["latent"], floats=False)
        weights = [one.initial() for _ in range(outputs)]
        return {f"{o}.{name}": weight for o, of_output in enumerate(weights) for name, weight in of_output.items()}

    @property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder that each output has, with weights of its own."""
        return Autoencoder.of_samples(self.data.images, self.autoencoder_units, self.latent)

    def parts(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Return the network's part of theta (P,), which nothing reads, and the weights (p,) of each autoencoder."""
        size, outputs = self.autoencoder.layout.size, self.data.outputs
        return theta.split([len(theta) - outputs * size] + [size] * outputs)

    def draws(self) -> dict[str, Tensor]:
        return {"noise": torch.randn(self.importance_samples, self.latent)}

    def init_drawn(self, theta: Tensor, drawn: Mapping[str, Tensor]) -> State:
        return self.State(theta.new_zeros(self.data.outputs), drawn["noise"])

    def outputs_of(self, there: Tensor) -> Sequence[int]:
        """Return the outputs whose entry of `there` (C,) bool is set; all, in a stack and on another device than the
        CPU, where reading it would hold up the others."""
        if inside_transform() or there.device.type != "cpu":
            return range(len(there))
        indices: list[int] = there.nonzero()[:, 0].tolist()
        return indices

    def loss(self, theta: Tensor, state: State, hp: Any, batch: Batch) -> tuple[Tensor, Aux]:
        """Return the mean loss of each sample under its own class's autoencoder."""
        one, (_, *weights), x = self.autoencoder, self.parts(theta), values_of(self.data, batch.x)
        e = normal(batch.noise[:, 0], len(x) * self.latent).to(theta).view(len(x), -1)
        targets, everywhere = one_hot(batch.y, self.data.outputs), torch.arange(len(x), device=x.device)
        errors = divergences = torch.zeros_like(batch.weight).to(theta)
        for output in self.outputs_of(targets.any(0)):
            own = targets[:, output]
            rows = everywhere if inside_transform() or own.device.type != "cpu" else own.nonzero()[:, 0]
            error, divergence = one.errors(one.layout.view(weights[output]), x[rows], e[rows])
            errors = errors.index_add(0, rows, torch.where(own[rows], error, 0))
            divergences = divergences.index_add(0, rows, torch.where(own[rows], divergence, 0))
        signals = {"latent_nats": batch.mean(divergences)}
        return batch.mean(errors + divergences) / x.shape[1], signals

    def restrict(self, delta: Tensor, g: Tensor, theta: Tensor, state: State, hp: Any, batch: Batch) -> Tensor:
        """Return the step for the autoencoders of which the batch has a sample, and 0 for all else."""
        network, *steps = self.parts(delta)
        own = torch.where(self.present(batch)[:, None], torch.stack(steps), 0)
        return torch.cat([torch.zeros_like(network), own.view(-1)])

    def present(self, batch: Batch) -> Tensor:
        """Return of which outputs a batch has a sample (C,) bool."""
        return (one_hot(batch.y, self.data.outputs) & (batch.weight > 0)[:, None]).any(0)

    def after_step(self, state: State, hp: Any, batch: Batch, aux: Aux) -> State:
        """Return the state with the batch's samples counted."""
        new = batch.weight @ one_hot(batch.y, self.data.outputs).to(batch.weight)
        return state._replace(samples=state.samples + new)

    def scores(self, theta: Tensor, state: State, hp: Any, x: Tensor, t: Tensor) -> Tensor:
        """Return the estimated log likelihoods (B, outputs) of samples x; outputs that were never trained come last."""
        one, (_, *weights), values = self.autoencoder, self.parts(theta), values_of(self.data, x)
        known = state.samples > 0
        scores = [values.new_zeros(len(values))] * len(known)
        for output in self.outputs_of(known):
            scores[output] = one.log_likelihood(one.layout.view(weights[output]), values, state.noise)
        return lowered(torch.stack(scores, 1), known)

    def health(self, state: State, hp: Any) -> dict[str, Tensor]:
        return {"modelled_outputs": (state.samples > 0).sum(), "modelled_samples": state.samples.sum()}

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        found = []
        if health and health[-1]["modelled_samples"] == 0:
            found.append("no autoencoder was trained, so it learnt nothing")
        elif len(health) > 1 and health[0]["modelled_samples"] == health[-1]["modelled_samples"]:
            found.append("no autoencoder was trained after the first task, so it learnt no other")
        if health and all(row["latent_nats"] < MEANINGLESS for row in health):
            found.append("the latent variables say nothing about a sample: each class is modelled by one mean picture")
        return found
