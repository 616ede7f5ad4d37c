"""A-GEM and FDR on Sequential MNIST in plain PyTorch, by the protocol of Buzzega et al. 2020, to compare clrun with.

    python scripts/plain_sequential_mnist.py fdr 500 together   # one step for the sum, as clrun takes it
    python scripts/plain_sequential_mnist.py fdr 500 apart      # a step for each part, as theirs
    python scripts/plain_sequential_mnist.py agem 500 any       # a task's pictures drawn from all of them, as theirs
    python scripts/plain_sequential_mnist.py agem 500 each      # as many of each of its classes, as clrun's

It prints the average accuracy in % after the last of five tasks of two digits, for each seed, and their mean with its
standard error. Nothing of clrun is used. One pass over the data; 784-100-100-10 with Glorot's uniform weights; SGD with
a rate of 0.1; batches of 10 (A-GEM) or 128 (FDR); 128 pictures of the memory a step, without replacement.
docs/results/reproduction.md has the results, in the remarks on rows 15 and 17.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import MNIST

TASKS, RATE, RECALLED = 5, 0.1, 128
BATCH = {"agem": 10, "fdr": 128}


class Samples(NamedTuple):
    """Pictures (n, 784) in [0, 1], and their labels (n,)."""

    x: Tensor
    y: Tensor


class Memory(NamedTuple):
    """The pictures that are kept, their labels, the probabilities (n, 10) at the end of their task, and that task."""

    x: Tensor
    y: Tensor
    p: Tensor
    task: Tensor

    def joined(self, other: "Memory") -> "Memory":
        """Return both memories as one."""
        return Memory(*(torch.cat(pair) for pair in zip(self, other, strict=True)))

    def at(self, chosen: Tensor) -> "Memory":
        """Return the entries at these positions (k,)."""
        return Memory(*(part[chosen] for part in self))


def read(folder: str, train: bool) -> Samples:
    """Return the training or the test pictures of MNIST."""
    found = MNIST(folder, train=train, download=True)
    return Samples(found.data.view(-1, 784).float() / 255, found.targets)


def new_network() -> nn.Sequential:
    """Return 784-100-100-10 with ReLU, weights by Glorot's uniform rule and biases of 0."""
    network = nn.Sequential(
        nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )  # fmt: skip
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return network


def gradient(network: nn.Sequential, loss: Tensor) -> Tensor:
    """Return the gradient (P,) of a loss."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def move(network: nn.Sequential, g: Tensor) -> None:
    """Take a step of SGD along -g (P,)."""
    with torch.no_grad():
        parts = g.split([p.numel() for p in network.parameters()])
        for p, part in zip(network.parameters(), parts, strict=True):
            p -= RATE * part.view_as(p)


def fit(network: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy."""
    return F.cross_entropy(network(x), y)


def distance(network: nn.Sequential, old: Memory) -> Tensor:
    """Return the mean distance of the probabilities from those at the end of each picture's task."""
    return (F.softmax(network(old.x), 1) - old.p).norm(2, 1).mean()


def agem_step(network: nn.Sequential, x: Tensor, y: Tensor, old: Memory, variant: str) -> None:
    """Take a step along the gradient, without its part against that of the memory (Chaudhry et al. 2019, eq. 11)."""
    g, r = gradient(network, fit(network, x, y)), gradient(network, fit(network, old.x, old.y))
    along = g @ r
    move(network, g - along / (r @ r) * r if along < 0 else g)


def fdr_step(network: nn.Sequential, x: Tensor, y: Tensor, old: Memory, variant: str) -> None:
    """Take one step for the cross entropy plus the distance, or one for each."""
    if variant == "together":
        move(network, gradient(network, fit(network, x, y) + distance(network, old)))
        return
    move(network, gradient(network, fit(network, x, y)))
    move(network, gradient(network, distance(network, old)))


Step = Callable[[nn.Sequential, Tensor, Tensor, Memory, str], None]
STEPS: dict[str, Step] = {"agem": agem_step, "fdr": fdr_step}


def kept_of_a_task(method: str, size: int, task: int, variant: str, rows: Tensor, y: Tensor) -> Tensor:
    """Return which of the rows (n,) of a task that ends, which are in random order, are kept."""
    if method == "fdr":
        return rows[: size // (task + 1)]
    share = size // TASKS
    if variant == "any":
        return rows[:share]
    return torch.cat([rows[y[rows] == label][: share // 2] for label in (2 * task, 2 * task + 1)])


def shrunk(memory: Memory, size: int, tasks: int) -> Memory:
    """Return the memory with no more than size / tasks pictures of each task, the first ones."""
    kept = [(memory.task == task).nonzero()[: size // tasks, 0] for task in range(tasks - 1)]
    return memory.at(torch.cat(kept))


def train(method: str, size: int, variant: str, data: Samples, seed: int) -> nn.Sequential:
    """Return a network that has learnt the five tasks one after another."""
    torch.manual_seed(seed)
    random, network = Generator().manual_seed(seed + 1000), new_network()
    memory: Memory | None = None
    for task in range(TASKS):
        rows = (data.y // 2 == task).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=random)]
        for chosen in rows.split(BATCH[method]):
            x, y = data.x[chosen], data.y[chosen]
            if memory is None:
                move(network, gradient(network, fit(network, x, y)))
                continue
            old = memory.at(torch.randperm(len(memory.x), generator=random)[:RECALLED])
            STEPS[method](network, x, y, old, variant)
        shuffled = rows[torch.randperm(len(rows), generator=random)]
        kept = kept_of_a_task(method, size, task, variant, shuffled, data.y)
        with torch.no_grad():
            p = F.softmax(network(data.x[kept]), 1)
        new = Memory(data.x[kept], data.y[kept], p, torch.full_like(kept, task))
        if memory is not None and method == "fdr":
            memory = shrunk(memory, size, task + 1)
        memory = new if memory is None else memory.joined(new)
    return network


def average_accuracy(network: nn.Sequential, data: Samples) -> float:
    """Return the mean over the tasks of the accuracy in %."""
    with torch.no_grad():
        right = (network(data.x).argmax(1) == data.y).double()
    return 100 * torch.stack([right[data.y // 2 == task].mean() for task in range(TASKS)]).mean().item()


def accuracies(method: str, size: int, variant: str, folder: str, seeds: range) -> Iterator[float]:
    """Yield the average accuracy of each seed."""
    data, test = read(folder, True), read(folder, False)
    for seed in seeds:
        yield average_accuracy(train(method, size, variant, data, seed), test)


def main() -> None:
    """Print the accuracies of seeds 2, 3 and so on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=sorted(STEPS))
    parser.add_argument("size", type=int, help="pictures in the memory")
    parser.add_argument("variant", choices=["together", "apart", "any", "each"])
    parser.add_argument("--data-dir", default="data", help="where MNIST is, or is downloaded to")
    parser.add_argument("--seeds", type=int, default=20, help="how many (default: 20)")
    options = parser.parse_args()
    if (options.variant in ("together", "apart")) != (options.method == "fdr"):
        parser.error("fdr goes with together or apart, and agem with any or each.")
    torch.set_num_threads(1)
    seeds = range(2, 2 + options.seeds)
    found = list(accuracies(options.method, options.size, options.variant, options.data_dir, seeds))
    values = torch.tensor(found)
    error = f"{values.std() / len(found) ** 0.5:.2f}" if len(found) > 1 else "unknown"
    print(f"{', '.join(f'{v:.2f}' for v in found)}; mean {values.mean():.2f}, se {error}")


if __name__ == "__main__":
    main()
