"""The beginning of a run that goes on from another one: its weights and its state, with more outputs and tasks.

What was learnt is kept: a tensor of the earlier run is the first part of the new one, and the rest is as in a new run
(the weights of new outputs are drawn from the seed).

Shapes: P entries of theta, with p before they grew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_map, tree_unflatten

from clrun.data.samples import Samples
from clrun.engine import hooks
from clrun.engine.stack import Stack
from clrun.engine.state import Average, TrainState
from clrun.models import Layout
from clrun.runs.checkpointer import run_of_stack, tensor_name
from clrun.runs.network_file import DeployedNetwork
from clrun.runs.origin import Origin
from clrun.runs.prepared import Prepared
from clrun.strategy import AnyMemory, Replay, Strategy, Tree
from clrun.system.errors import UsageError


def with_carried(images: Samples, origin: Origin) -> Samples:
    """Return the data with the classes of the earlier run, and with the samples of its memory at the end."""
    known = [*images.classes]
    memory = origin.network.memory
    remembered = [origin.network.classes[k] for k in memory["y"].tolist()] if origin.carries_samples else []
    known += [name for name in dict.fromkeys([*origin.earlier.classes, *remembered]) if name not in known]
    if not origin.carries_samples:
        return replace(images, classes=tuple(known))
    y = torch.tensor([known.index(name) for name in remembered], dtype=images.y.dtype)
    domain = None if images.domain is None else torch.cat([images.domain, torch.zeros_like(y)])
    x = torch.cat([images.x, memory["x"].to(images.x.dtype)])
    return replace(
        images, x=x, y=torch.cat([images.y, y]), classes=tuple(known), domain=domain, carried=len(remembered)
    )


def begun(stack: Stack, runs: Sequence[Prepared]) -> TrainState:
    """Return the runs of a stack as they are before any training by them."""
    new = stack.initialize()
    if runs[0].origin is None:
        return new
    trees = [begun_run(stack, new, run, r) for r, run in enumerate(runs)]
    return stack.vectorizer.stack_trees([tree_map(lambda v: v.cpu(), tree) for tree in trees])


def begun_run(stack: Stack, new: TrainState, prepared: Prepared, r: int) -> TrainState:
    """Return run r of a stack as it is before any training by it. new: the stack, newly initialised."""
    origin, strategy, device = prepared.origin, stack.strategy, stack.device
    assert origin is not None
    fresh = tree_map(lambda v: v.to(device), run_of_stack(new, r, stack.alone))
    hp = stack.hp if stack.alone else tree_map(lambda v: v[r], stack.hp)
    state = grown(fresh, strategy, stack.drawn[r], prepared.images, origin)
    added = strategy.net.layout.flat(
        {name: ~covered(shape, origin.network.weights.get(name)) for name, shape in strategy.net.layout.shapes.items()}
    ).to(device)
    tables = stack.tables if stack.alone else tree_map(lambda v: v[r], stack.tables)
    learnt = torch.tensor(stack.learnt, device=device)
    adopted = hooks.adopted(strategy.eval_mode(state.stats), state, hp, added, learnt, tables)
    return state._replace(state=tree_map(torch.clone, adopted))


def covered(shape: Sequence[int], earlier: Tensor | None) -> Tensor:
    """Return a mask of this shape of the entries that the earlier run had."""
    mask = torch.zeros(tuple(shape), dtype=torch.bool)
    if earlier is not None:
        mask[tuple(slice(n) for n in earlier.shape)] = True
    return mask


def grown(
    fresh: TrainState, strategy: Strategy, drawn: Mapping[str, Tensor], images: Samples, origin: Origin
) -> TrainState:
    """Return a run with what the earlier run had in place of a new run's values. fresh: one run, newly initialised.

    Raise UsageError where a part of the state does not fit.
    """
    layout, network = strategy.net.layout, origin.network
    before = Layout({name: tuple(v.shape) for name, v in network.weights.items()})
    weights = before.flat(network.weights) if origin.tensors is None else origin.tensors["run.theta"]
    theta = grown_vector(weights, before, fresh.theta, layout)
    stats = {name: network.statistics[name].to(v) for name, v in fresh.stats.items()}
    state = hooks.initial_state(strategy, theta, tree_map(lambda v: v.to(theta.device), drawn))
    average = Average.begin(theta) if isinstance(fresh.average, Average) else ()
    new = TrainState(theta, fresh.opt, stats, state, average)
    if origin.tensors is None:
        return new
    leaves, structure = tree_flatten_with_path(new)
    values = [grown_leaf(tensor_name(path), v, before, layout, origin) for path, v in leaves]
    carried: TrainState = tree_unflatten(values, structure)
    refuse_grown_memories(strategy, new.state, carried.state, origin)
    return carried._replace(theta=theta, stats=stats, state=with_rows_of(carried.state, images, network))


def grown_leaf(name: str, new: Tensor, before: Layout, layout: Layout, origin: Origin) -> Tensor:
    """Return a tensor of the earlier run, by its name in checkpoints, as large as that of the new run. Raise
    UsageError where it does not fit; of the optimizer, which may be another one, and of an average of theta, which the
    earlier run may not have, the new run's is returned then."""
    earlier = (origin.tensors or {}).get(name)
    if earlier is not None and earlier.dtype.is_floating_point == new.dtype.is_floating_point:
        if earlier.shape == (before.size,) and new.shape == (layout.size,):
            return grown_vector(earlier, before, new, layout)
        if earlier.dim() == new.dim() and all(a <= b for a, b in zip(earlier.shape, new.shape, strict=True)):
            return in_corner(earlier, new)
    if name.startswith(("run.opt", "run.average")):
        return new
    raise UsageError(
        f"{origin.where}: the state of that run does not fit ({name.removeprefix('run.')}"
        f"{'' if earlier is None else f' is {tuple(earlier.shape)} there and {tuple(new.shape)} here'}); type the keys "
        "of the strategy as they were there, such as memory_size."
    )


def in_corner(earlier: Tensor, new: Tensor) -> Tensor:
    """Return the new tensor with the earlier one as its first part, in each dimension."""
    result = new.clone()
    result[tuple(slice(n) for n in earlier.shape)] = earlier.to(new)
    return result


def grown_vector(earlier: Tensor, before: Layout, new: Tensor, layout: Layout) -> Tensor:
    """Return a vector (P,) like theta, with the values of the earlier one (p,) where that run had such entries."""
    pieces, values = layout.view(new), before.view(earlier)
    return layout.flat({name: in_corner(values[name], v) if name in values else v for name, v in pieces.items()})


# ---------------------------------------------------------------- memories


def refuse_grown_memories(strategy: Strategy, new: Tree, carried: Tree, origin: Origin) -> None:
    """Raise UsageError where a memory got more slots although it has turned samples away, which it cannot undo."""
    if isinstance(strategy, Replay) and strategy.memory_per_class is not None:
        return  # what it has turned away would never be wanted
    for (path, one), (_, other) in zip(memories_of(new), memories_of(carried), strict=True):
        earlier = (origin.tensors or {})[f"run.own{path}.rows"]
        if len(one.rows) != len(earlier) and int(other.offered) > len(earlier):
            raise UsageError(
                f"{origin.where}: the memory of that run has {len(earlier)} slots and was offered {int(other.offered)} "
                f"samples; type memory_size={len(earlier)}."
            )


def memories_of(state: Tree) -> list[tuple[str, AnyMemory]]:
    """Return all memories in a state, with their paths."""
    leaves = tree_flatten_with_path(state, is_leaf=lambda node: isinstance(node, AnyMemory))[0]
    paths = [(tensor_name((torch.utils._pytree.GetAttrKey("state"), *path)), node) for path, node in leaves]
    return [(path.removeprefix("run.own"), node) for path, node in paths if isinstance(node, AnyMemory)]


def with_rows_of(state: Tree, images: Samples, network: DeployedNetwork) -> Tree:
    """Return the state with memories that name their samples where these lie now: at the end of the data."""

    def renamed(node: Any) -> Any:
        if not isinstance(node, AnyMemory):
            return node
        known = {name: v.to(node.rows.device) for name, v in network.memory.items()}
        at = torch.searchsorted(known["rows"], node.rows).clamp(max=max(0, len(known["rows"]) - 1))
        image = len(images.x) - images.carried + at
        rows = image + len(images.x) * known["task"][at] if len(known["rows"]) else node.rows
        return node._replace(rows=torch.where(node.used, rows, 0))

    return tree_map(renamed, state, is_leaf=lambda node: isinstance(node, AnyMemory))
