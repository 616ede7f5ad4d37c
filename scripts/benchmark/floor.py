"""The floor: what a careful person would write by hand for one experiment, and nothing that it does not need.

Data in memory as float32 on the device, `torch.randperm` batches, the parameters as views of one vector, fused Adam,
the penalty's gradient in closed form, the exact Fisher in closed form, a reservoir of row numbers. No framework: only
torch, and nothing of clrun.

    L(theta) = CE + lambda/2 * sum_k F_k (theta - theta_k)^2       EWC (Kirkpatrick et al. 2017)
    L(theta) = 1/2 CE(batch) + 1/2 CE(replayed)                    experience replay (Chaudhry et al. 2019)
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.worker import Answer, Clock

EVALUATE = 1000  # test samples a pass
FISHER = {"mlp": 512, "cnn": 64}  # samples a pass; on a GPU eight times as many
WARM = 3  # steps before a CUDA graph is captured
ADAM = {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8, "amsgrad": False, "maximize": False}


class Task(NamedTuple):
    """Rows of the data, and the outputs lo ... hi - 1 that its loss spans."""

    train: Tensor  # (n,)
    test: Tensor  # (m,)
    lo: int
    hi: int
    order: Tensor | None  # (pixels,) of a permuted task


# ---------------------------------------------------------------- data


class Experiment:
    """The data on the device and the tasks in it."""

    def __init__(self, spec: Mapping[str, Any]):
        with np.load(spec["file"]) as file:
            x, y, train = torch.from_numpy(file["x"]), torch.from_numpy(file["y"]), int(file["train"])
        self.spec, self.shape = spec, x.shape[1:]
        self.x = self.scaled(x.float(), train).flatten(1).to(spec["device"])
        place = {k: i for i, k in enumerate(k for group in spec["groups"] for k in group)}
        self.y = torch.tensor([place[k] for k in range(len(place))])[y].to(spec["device"])
        self.tasks = self.permuted(train, y) if spec["split"] == "permuted" else self.split(train, y)
        self.outputs = len(place)

    def scaled(self, x: Tensor, train: int) -> Tensor:
        """(N, C, H, W) -> [0, 1], or mean 0 and deviation 1 a channel over the training pictures."""
        if not self.spec["normalize"]:
            return x.div_(255)
        seen = x[:train].double()
        deviation, mean = torch.std_mean(seen, (0, 2, 3), correction=0)
        return x.sub_(mean.float()[:, None, None]).div_(deviation.float()[:, None, None])

    def split(self, train: int, y: Tensor) -> list[Task]:
        """Tasks of different classes; class-incremental losses span the classes seen so far."""
        tasks, lo = [], 0
        for group in self.spec["groups"]:
            rows = torch.isin(y, torch.tensor(group)).nonzero()[:, 0].to(self.spec["device"])
            first = lo if self.spec["scenario"] == "task" else 0
            tasks.append(Task(rows[rows < train], rows[rows >= train], first, lo + len(group), None))
            lo += len(group)
        return tasks

    def permuted(self, train: int, y: Tensor) -> list[Task]:
        """Tasks of the same classes with pixels in another order."""
        draw = torch.Generator().manual_seed(self.spec["seed"])
        rows, pixels = torch.arange(len(y), device=self.spec["device"]), self.x.shape[1]
        outputs = len(self.spec["groups"][0])
        orders = [None] + [torch.randperm(pixels, generator=draw) for _ in range(self.spec["tasks"] - 1)]
        orders = [None if order is None else order.to(self.spec["device"]) for order in orders]
        return [Task(rows[:train], rows[train:], 0, outputs, order) for order in orders]

    def pictures(self, rows: Tensor, task: Task) -> Tensor:
        x = self.x.index_select(0, rows)
        if task.order is not None:
            x = x.index_select(1, task.order)
        return x if self.spec["model"] == "mlp" else x.view(-1, *self.shape)


# ---------------------------------------------------------------- networks


def layers(experiment: Experiment) -> list[nn.Module]:
    """In the order in which their parameters lie in theta; used for their initial values alone."""
    spec, outputs = experiment.spec, experiment.outputs
    channels, height, breadth = experiment.shape
    if spec["model"] == "mlp":
        sizes = [channels * height * breadth, *spec["widths"], outputs]
        return [nn.Linear(a, b) for a, b in pairwise(sizes)]
    w = spec["width"]
    convolutions = [nn.Conv2d(channels, w, 3, padding=1), nn.Conv2d(w, 2 * w, 3, padding=1)]
    return [*convolutions, nn.Linear(2 * w * (height // 4) * (breadth // 4), 8 * w), nn.Linear(8 * w, outputs)]


def mlp(w: Sequence[Tensor], x: Tensor) -> Tensor:
    """x (B, pixels) -> logits (B, outputs)."""
    for i in range(0, len(w) - 2, 2):
        x = F.linear(x, w[i], w[i + 1]).relu()
    return F.linear(x, w[-2], w[-1])


def cnn(w: Sequence[Tensor], x: Tensor) -> Tensor:
    """x (B, C, H, W) -> logits (B, outputs)."""
    x = F.max_pool2d(F.conv2d(x, w[0], w[1], padding=1).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, w[2], w[3], padding=1).relu(), 2)
    return F.linear(F.linear(x.flatten(1), w[4], w[5]).relu(), w[6], w[7])


NETWORKS = {"mlp": mlp, "cnn": cnn}


class Parameters:
    """theta (P,), and each parameter as a leaf that shares its storage."""

    def __init__(self, made: Sequence[nn.Module], device: str):
        values = [p.detach() for layer in made for p in layer.parameters()]
        self.shapes = [v.shape for v in values]
        self.sizes = [v.numel() for v in values]
        self.theta = torch.cat([v.reshape(-1) for v in values]).to(device)
        self.leaves = [v.requires_grad_() for v in self.views(self.theta)]
        self.first, self.second = torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        self.moments = self.views(self.first), self.views(self.second)
        self.steps = torch.zeros((), device=device)

    def views(self, flat: Tensor) -> list[Tensor]:
        return [v.view(shape) for v, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]

    def adam(self, gradients: Sequence[Tensor], lr: float) -> None:
        """The kernel behind torch.optim.Adam(fused=True)."""
        self.steps += 1
        counters = [self.steps] * len(self.leaves)
        with torch.no_grad():
            torch._fused_adam_(self.leaves, list(gradients), *self.moments, [], counters, lr=lr, **ADAM)


# ---------------------------------------------------------------- exact Fisher


def fisher(kind: str, w: Sequence[Tensor], x: Tensor, lo: int, hi: int) -> list[Tensor]:
    """sum_x sum_y p(y|x) (d log p(y|x) / d theta)^2 over the outputs lo ... hi - 1: one tensor a parameter.

    A linear layer with input a and d = d log p / d(pre-activation) has d a^T as a sample's gradient, so the sum of
    squares is (sum_y p_y d_y^2)^T a^2: one product a layer, however many outputs.
    """
    size = FISHER[kind] * (8 if x.is_cuda else 1)
    parts = [(fisher_mlp if kind == "mlp" else fisher_cnn)(w, chunk, lo, hi) for chunk in x.split(size)]
    return [torch.stack(pieces).sum(0) if len(pieces) > 1 else pieces[0] for pieces in zip(*parts, strict=True)]


def fisher_mlp(w: Sequence[Tensor], x: Tensor, lo: int, hi: int) -> list[Tensor]:
    """With the backward pass written out."""
    inputs, depth = [x], len(w) // 2
    for i in range(depth - 1):
        inputs.append(F.linear(inputs[-1], w[2 * i], w[2 * i + 1]).relu_())
    head = w[-2][lo:hi]
    log_p = F.linear(inputs[-1], head, w[-1][lo:hi]).log_softmax(1)
    p, root = log_p.exp(), (log_p / 2).exp()
    alive = [a > 0 for a in inputs[1:]]
    sums = [torch.zeros_like(a) for a in inputs[1:]] + [torch.zeros_like(p)]
    for y in range(hi - lo):
        d = -p * root[:, y : y + 1]
        d[:, y] += root[:, y]
        sums[-1].addcmul_(d, d)
        for i in range(depth - 2, -1, -1):
            d = (d @ (head if i == depth - 2 else w[2 * i + 2])).mul_(alive[i])
            sums[i].addcmul_(d, d)
    pieces = []
    for a, s in zip(inputs, sums, strict=True):
        pieces += [s.T @ a.square(), s.sum(0)]
    return [*pieces[:-2], *(padded(piece, like, lo) for piece, like in zip(pieces[-2:], w[-2:], strict=True))]


def padded(piece: Tensor, like: Tensor, lo: int) -> Tensor:
    """Zeros for the outputs that do not answer."""
    whole = torch.zeros_like(like)
    whole[lo : lo + len(piece)] = piece
    return whole


def fisher_cnn(w: Sequence[Tensor], x: Tensor, lo: int, hi: int) -> list[Tensor]:
    """The same for two convolutions and two linear layers: a convolution's gradient is d unfold(a)^T."""
    w, inputs, taps = [p.detach() for p in w], [], []

    def tapped(a: Tensor, z: Tensor) -> Tensor:
        inputs.append(a.detach())
        taps.append(torch.zeros_like(z, requires_grad=True))
        return z + taps[-1]

    with torch.enable_grad():
        for i in (0, 2):
            x = F.max_pool2d(tapped(x, F.conv2d(x, w[i], w[i + 1], padding=1)).relu(), 2)
        x = tapped(x.flatten(1), F.linear(x.flatten(1), w[4], w[5])).relu()
        log_p = tapped(x, F.linear(x, w[6], w[7]))[:, lo:hi].log_softmax(1).unbind(1)
    columns = [F.unfold(a, 3, padding=1).mT for a in inputs[:2]]
    pieces = [torch.zeros_like(v) for v in w]
    for y in range(hi - lo):
        root = (log_p[y].detach() / 2).exp()
        d = torch.autograd.grad(log_p[y], taps, root, retain_graph=True)
        for i, column in enumerate(columns):
            pieces[2 * i] += (d[i].flatten(2) @ column).square().sum(0).view_as(w[2 * i])
            pieces[2 * i + 1] += d[i].sum((2, 3)).square().sum(0)
        for i in (2, 3):
            pieces[2 * i].addmm_(d[i].square().T, inputs[i].square())
            pieces[2 * i + 1] += d[i].square().sum(0)
    return pieces


# ---------------------------------------------------------------- the past


class Anchor:
    """The penalties of all past tasks as one quadratic."""

    def __init__(self, parameters: Parameters, strength: float):
        self.parameters, self.strength = parameters, strength
        self.mean, self.weight = parameters.theta.clone(), torch.zeros_like(parameters.theta)
        self.away = torch.empty_like(self.weight)
        self.weights, self.aways = parameters.views(self.weight), parameters.views(self.away)

    def pull(self, gradients: Sequence[Tensor]) -> None:
        """g += lambda F (theta - mean), in place."""
        torch.sub(self.parameters.theta, self.mean, out=self.away)
        for g, weight, away in zip(gradients, self.weights, self.aways, strict=True):
            g.addcmul_(weight, away)

    def absorb(self, F_sum: Sequence[Tensor], n: int) -> None:
        """One more anchor at theta, with the Fisher F_sum / n."""
        new = torch.cat([piece.reshape(-1) for piece in F_sum]).mul_(self.strength / n)
        self.weight += new
        self.mean += new.div_(self.weight.clamp(min=1e-30)).mul_(self.parameters.theta - self.mean)


class Reservoir:
    """Row numbers of past samples, each kept with probability M / (samples seen) (Vitter 1985)."""

    def __init__(self, slots: int, device: str):
        self.rows, self.seen = torch.zeros(slots, dtype=torch.long, device=device), 0

    def draw(self, n: int) -> Tensor:
        return self.rows[torch.randint(min(self.seen, len(self.rows)), (n,), device=self.rows.device)]

    def offer(self, rows: Tensor) -> None:
        free = max(0, min(len(self.rows) - self.seen, len(rows)))
        self.rows[self.seen : self.seen + free] = rows[:free]
        rest = rows[free:]
        if len(rest):
            offered = self.seen + free + 1 + torch.arange(len(rest), device=rest.device)
            slots = (torch.rand(len(rest), dtype=torch.float64, device=rest.device) * offered).long()
            taken = slots < len(self.rows)
            self.rows[slots[taken]] = rest[taken]
        self.seen += len(rows)


# ---------------------------------------------------------------- the loop


class Floor:
    """One run."""

    def __init__(self, experiment: Experiment):
        self.experiment, self.spec = experiment, experiment.spec
        torch.manual_seed(self.spec["seed"])
        self.parameters = Parameters(layers(experiment), self.spec["device"])
        self.net = NETWORKS[self.spec["model"]]
        self.anchor = Anchor(self.parameters, self.spec["lambda"]) if self.spec["strategy"] == "ewc" else None
        self.memory = Reservoir(self.spec["memory"], self.spec["device"]) if self.spec["strategy"] == "er" else None

    def train(self, number: int) -> int:
        """One task; the number of steps."""
        task, B, steps = self.experiment.tasks[number], self.spec["batch"], 0
        for _ in range(self.spec["epochs"]):
            for rows in self.shuffled(task.train).split(B):
                self.step(rows, task, number)
                steps += 1
        return steps

    @staticmethod
    def shuffled(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), device=rows.device)]

    def step(self, rows: Tensor, task: Task, number: int) -> None:
        shown = rows
        if self.memory is not None and self.memory.seen:
            shown = torch.cat([rows, self.memory.draw(len(rows))])
        x, y = self.experiment.pictures(shown, task), self.experiment.y.index_select(0, shown)
        z = self.net(self.parameters.leaves, x)[:, task.lo : task.hi]
        gradients = torch.autograd.grad(F.cross_entropy(z, y - task.lo if task.lo else y), self.parameters.leaves)
        if self.anchor is not None and number > 0:
            self.anchor.pull(gradients)
        self.parameters.adam(gradients, self.spec["lr"])
        if self.memory is not None:
            self.memory.offer(rows)

    @torch.no_grad()
    def consolidate(self, number: int) -> int:
        """What follows a task; the number of samples that were looked at."""
        if self.anchor is None:
            return 0
        task, sums = self.experiment.tasks[number], None
        for rows in task.train.split(8 * FISHER[self.spec["model"]]):
            x = self.experiment.pictures(rows, task)
            pieces = fisher(self.spec["model"], self.parameters.leaves, x, task.lo, task.hi)
            sums = pieces if sums is None else [s.add_(p) for s, p in zip(sums, pieces, strict=True)]
        self.anchor.absorb(sums, len(task.train))
        return len(task.train)

    @torch.inference_mode()
    def evaluate(self, number: int) -> list[float]:
        """Accuracy on every task once task `number` has been learnt; what is not answered yet counts as wrong."""
        now, row = self.experiment.tasks[number], []
        for task in self.experiment.tasks:
            lo, hi = (now.lo, now.hi) if self.spec["scenario"] == "class" else (task.lo, task.hi)
            right = torch.zeros((), dtype=torch.long, device=task.test.device)
            for rows in task.test.split(EVALUATE):
                z = self.net(self.parameters.leaves, self.experiment.pictures(rows, task))[:, lo:hi]
                right += (z.argmax(1) + lo == self.experiment.y[rows]).sum()
            row.append(right.item() / len(task.test))
        return row


class GraphFloor(Floor):
    """The same on a GPU, with a step of a task as a CUDA graph. On a CPU the step is called as it is."""

    def train(self, number: int) -> int:
        task, B = self.experiment.tasks[number], self.spec["batch"]
        batches = [rows for _ in range(self.spec["epochs"]) for rows in self.shuffled(task.train).split(B)]
        static, whole = torch.empty_like(batches[0]), [rows for rows in batches[WARM:] if len(rows) == B]

        def step() -> None:
            self.step(static, task, number)

        self.warmed(batches[:WARM], task, number)
        replay = captured(step, self.spec["device"]) if whole else step
        for rows in batches[WARM:]:
            if len(rows) == B:
                static.copy_(rows)
                replay()
            else:
                self.step(rows, task, number)
        return len(batches)

    def warmed(self, batches: Sequence[Tensor], task: Task, number: int) -> None:
        """Real steps, on a stream of their own, as capturing asks for."""
        if self.spec["device"] == "cpu":
            for rows in batches:
                self.step(rows, task, number)
            return
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for rows in batches:
                self.step(rows, task, number)
        torch.cuda.current_stream().wait_stream(aside)


def captured(step: Callable[[], None], device: str) -> Callable[[], None]:
    """What repeats the step."""
    if device == "cpu":
        return step
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def run(spec: Mapping[str, Any]) -> Answer:
    """A whole run."""
    torch.set_num_threads(1)
    device = spec["device"]
    clock = Clock(torch.cuda.synchronize if device == "cuda" else lambda: None)
    with clock.phase("load"):
        experiment = Experiment(spec)
    matrix = []
    with clock.phase("whole"):
        floor = (GraphFloor if spec.get("variant") == "floor-graph" else Floor)(experiment)
        for number in range(len(experiment.tasks)):
            with clock.phase("training"):
                steps = floor.train(number)
            with clock.phase("consolidation"):
                samples = floor.consolidate(number)
            with clock.phase("evaluation"):
                matrix.append(floor.evaluate(number))
            clock.count("training", steps)
            clock.count("consolidation", samples)
    return {"matrix": matrix, "phases": clock.phases}
