"""Strategy: plain fine-tuning, and the places (hooks) where a continual-learning method may differ from it.

A strategy is written for one run: every hook takes tensors and returns tensors, and changes none of its inputs. Stacks
of runs, CUDA graphs and evaluation call the same hooks.

Shapes: P parameters, B samples of a batch, C channels and H x W pixels of an image, T tasks.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor
from torch.utils._pytree import tree_leaves

from clrun.data.batches import Batch, Data, Pool
from clrun.data.tasks import TaskTables
from clrun.models import BatchNormRecord, Net, Network, RunningStatistics
from clrun.strategy.gradients import Aux, gradient_of
from clrun.strategy.loss import cross_entropy
from clrun.strategy.quadratic import Quadratic
from clrun.strategy.ranked import AnyMemory

# Tensors in (named) tuples, lists and dicts: the state of a strategy, for example.
Tree = Any

# The settings of a strategy by key, as the user typed them: {"lambda": 400.0, "online": False}.
Knobs = Mapping[str, Any]

# The rows of health.csv, one per task: {"task": 1, "loss": 0.3, ...}.
HealthRows = Sequence[Mapping[str, float]]

# Share: a penalty or a replayed loss below this part of the whole loss has no effect.
NEGLIGIBLE = 1e-12

# Hooks that are called where a task begins or ends, or say what its training is.
BOUNDARY_HOOKS = ("begin_stage", "after_phase", "visible", "trained_rows", "takes_steps")

# Former names of hooks, which are accepted for one release, and their new names.
FORMER_HOOKS = {"objection": "incompatibility", "complaints": "warnings"}


@dataclass(frozen=True)
class Strategy:
    """Plain fine-tuning, and the base class of every method.

    A method overrides the hooks in which it differs. Its knobs, with their defaults and ranges, are declared in
    conf/strategy/<name>.yaml. Those that are fixed choices are dataclass fields. Those that are strengths, which a
    sweep may vary within one stack of runs, are fields of `Hyper`, each a tensor (). Its state is a tree of tensors,
    usually a NamedTuple `State`, that `init` creates and the hooks `after_...` return anew.

    Attributes:
        net: The network as a function: net(theta, x) -> logits.
        data: The images on the device, the number of tasks and of outputs.
        phases: The passes over each task, by name; `after_phase` is called after each.
        restart: Whether each task starts from fresh parameters.
        reads_once: Whether `logits` reads the network exactly once and at theta itself, not at a masked or merged
            version of it. Then sums over samples (Fisher information) have a fast closed form. A class that
            overrides `logits` and does not state `reads_once` gets False.
        answering_floats: The floats that `scores` has in memory at once, beside those of the network's layers. They are
            reckoned with where a GPU's memory is shared.
        fits_weights: Whether `after_phase` fits a part of the answers to theta (P,) as it is then, such as class means,
            a correction of the outputs or weights that are kept. With `average=ema`, theta then becomes its average
            before `after_phase` is called, and training goes on from there; otherwise training is as without.
        goes_on: Whether a run may go on from the state of an earlier one (`init_from`), to which tasks and outputs are
            added. A state that names samples does so by `Memory` or `RankedMemory` then.
        smooths_labels: Whether the loss has a target for each output, over which `label_smoothing` can spread.
        one_pass: Whether the method can learn where each sample of a task is seen once (`stream=online`).
        needs_boundaries: Whether the method must be told where tasks begin and end, which `boundaries=false` does not.
            A class that overrides one of `BOUNDARY_HOOKS`, restarts or has several phases, and does not state
            `needs_boundaries`, gets True. Without boundaries none of these hooks but `visible` is called, and
            `batch.stage` stays 0.
        shares: The signals that are part of the loss; their share of it is reported as "<signal>_over_loss".
    """

    net: Net
    data: Data

    phases: ClassVar[tuple[str, ...]] = ("train",)
    restart: ClassVar[bool] = False
    reads_once: ClassVar[bool] = True
    shares: ClassVar[tuple[str, ...]] = ()
    goes_on: ClassVar[bool] = True
    fits_weights: ClassVar[bool] = False
    smooths_labels: ClassVar[bool] = True
    answering_floats: ClassVar[int] = 0
    one_pass: ClassVar[bool] = True
    needs_boundaries: ClassVar[bool] = False

    class Hyper(NamedTuple):
        """The strengths of the method, each a tensor (); plain fine-tuning has none."""

    def __init_subclass__(cls, **rest: Any) -> None:
        """Accept the former names of hooks, and set `reads_once` and `needs_boundaries` where a class overrides what
        they are about and does not state them."""
        super().__init_subclass__(**rest)
        accept_former_hooks(cls)
        inherited = [base.logits for base in cls.__bases__ if issubclass(base, Strategy)]
        if "reads_once" not in cls.__dict__ and cls.logits not in inherited:
            cls.reads_once = False
        uses = any(hook in cls.__dict__ for hook in BOUNDARY_HOOKS) or cls.restart or len(cls.phases) > 1
        if "needs_boundaries" not in cls.__dict__ and uses:
            cls.needs_boundaries = True

    # ---------------------------------------------------------------- hooks on the host: ordinary Python

    @classmethod
    def trainables(cls, network: Network, tasks: int, knobs: Knobs) -> dict[str, Tensor]:
        """Return parameters that the method adds to theta, by name, with their initial values; by default none.

        It is called once for each run, before training. PyTorch's global generator is seeded with the run's seed.
        """
        return {}

    def draws(self) -> dict[str, Tensor]:
        """Return random numbers that are drawn once for a run and never trained, by name; by default none.

        `init_drawn` gets them. It is called once for each run, before training, with PyTorch's global generator seeded
        with the run's seed. It may use the shapes of `self.net` and `self.data`, and fixed choices.
        """
        return {}

    def takes_steps(self, stage: int) -> bool:
        """Return whether theta is trained by steps of the optimizer in this stage; by default it is.

        Where it is not, `after_phase` is called at once. It may use `self.data.tasks` and fixed choices.
        """
        return True

    @property
    def recalls_one(self) -> tuple[str, int] | None:
        """Where past samples pass through the network one at a time, the setting that says so and the least value with
        which they do not; by default None.

        clrun refuses it for a network whose batch norms cannot be trained on one sample. It may use `self.data.tasks`
        and fixed choices.
        """
        return None

    def visible(self, stage: int) -> Sequence[int]:
        """Return the tasks, from 0, whose samples are trained on in this stage; by default the stage's own task.

        If there are none, nothing is trained. It may use `self.data.tasks` and no other attribute.
        """
        return (stage,)

    def trained_rows(self, phase: str, state: Tree, own: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the rows (n,) of the samples that a pass over a task trains on; by default `own`, those of the
        `visible` tasks, [task] (n,).

        A method may leave some out, or add those that a memory holds: each tensor is shuffled by itself where a batch
        has equally many samples of each task, and all of them together elsewhere. It is called on the state of one run
        at the beginning of each pass, and again where an interrupted run goes on within it: what it reads of the state
        must not change during the pass. If there is no row, no step is taken.
        """
        return own

    def trained_samples(self, stage: int, classes: Sequence[Sequence[int]]) -> int | None:
        """Return how many samples a pass over a stage trains on where `trained_rows` chooses them; by default None,
        which is: it is known when they are chosen.

        classes[s] are the numbers of samples of each class of those that come in stage s. It may use fixed choices.
        """
        return None

    @property
    def uses_boundaries(self) -> bool:
        """Whether the method, with its fixed choices, must be told where tasks begin and end: by default
        `needs_boundaries`."""
        return self.needs_boundaries

    @classmethod
    def incompatibility(cls, network: Network, optimizer: str, knobs: Knobs) -> str | None:
        """Return why the method cannot work with this network, optimizer or combination of settings; by default None.

        The sentence should say what to type instead: clrun refuses the run with it before training. Scenarios that the
        method cannot work in are stated in its YAML file.
        """
        return None

    @classmethod
    def warnings(cls, health: HealthRows, knobs: Knobs) -> list[str]:
        """Return what a reader must know if the method had no effect; by default nothing.

        It is called after training with the rows of health.csv, one per task. clrun prints the sentences as warnings.
        """
        return []

    # The former names, for one release: see FORMER_HOOKS.
    objection = incompatibility
    complaints = warnings

    def stored_samples(self, state: Tree) -> int:
        """Return how many samples of past tasks the state of one run holds; their images count in the run's `state_mb`.

        By default these are the slots in use of all `Memory` and `RankedMemory` tuples in the state.
        """
        return sum(int(memory.held) for memory in memories(state))

    def unused_bytes(self, state: Tree) -> int:
        """Return the bytes of the state of one run that are reserved and hold nothing; they do not count in `state_mb`.

        By default these are the empty slots of all `Memory` and `RankedMemory` tuples in the state.
        """
        return sum((len(memory.rows) - int(memory.held)) * memory.slot_bytes for memory in memories(state))

    # ---------------------------------------------------------------- hooks on tensors: pure functions of one run

    def init(self, theta: Tensor) -> Tree:
        """Return the initial state for initial parameters theta (P,); by default an empty one.

        Every tensor has its final shape and type from the start. It is called once, before the first task.
        """
        return ()

    def init_drawn(self, theta: Tensor, drawn: Mapping[str, Tensor]) -> Tree:
        """Return the initial state, as `init` does, with the numbers that `draws` returned; by default `init(theta)`.

        A method overrides one of the two: this one if it draws numbers.
        """
        return self.init(theta)

    def begin_stage(self, theta: Tensor, state: Tree, hp: Any, fresh: Tensor) -> tuple[Tensor, Tree]:
        """Return theta (P,) and the state at the beginning of a stage; by default both as they are.

        It is called before every stage but the first. fresh (P,) are new initial parameters, others at every stage.
        """
        return theta, state

    def adopt(self, theta: Tensor, state: Tree, hp: Any, added: Tensor, learnt: Tensor, tables: TaskTables) -> Tree:
        """Return the state with which a run goes on from an earlier one (`init_from`); by default the state itself.

        It is called once, before any training. theta (P,) and the state are those of the earlier run where it had such
        entries and are as `init` makes them where it had none, as those of new outputs; where its state is not there,
        all of the state is. added (P,) bool: the entries of theta that are new. learnt () int64: the number of tasks
        learnt so far. The network is in evaluation mode.
        """
        return state

    def logits(self, theta: Tensor, state: Tree, hp: Any, x: Tensor, t: Tensor) -> Tensor:
        """Return the logits (B, outputs) of images x (B, C, H, W) of tasks t (B,); by default net(theta, x).

        They are both trained (`loss`) and evaluated. Only methods that know the task at test time may use t.
        """
        return self.net(theta, x)

    def scores(self, theta: Tensor, state: Tree, hp: Any, x: Tensor, t: Tensor) -> Tensor:
        """Return the scores (B, outputs) by which images x (B, C, H, W) are answered; by default `logits`.

        Of the outputs that may answer, that of the largest score does. A method that does not answer by what it trains
        overrides it, such as one that answers by the nearest mean of its features. A finished run's network answers
        without its data: all that the scores read besides theta must stand in the state.
        """
        return self.logits(theta, state, hp, x, t)

    def loss(self, theta: Tensor, state: Tree, hp: Any, batch: Batch) -> tuple[Tensor, Aux]:
        """Return the loss () of a batch and values for `after_step`; by default the cross entropy and no values.

        Values of shape () are also signals: their means over a task are columns of health.csv.
        """
        return cross_entropy(self.logits(theta, state, hp, batch.x, batch.t), batch), {}

    def quadratic(self, state: Tree, hp: Any) -> Quadratic | None:
        """Return a quadratic penalty that is added to the loss; by default None.

        Its gradient is known, so that autograd need not compute it. It is not part of `loss` and `gradient`. Its mean
        over a task is the column "penalty" of health.csv.
        """
        return None

    def gradient(self, theta: Tensor, state: Tree, hp: Any, batch: Batch) -> tuple[Tensor, Tensor, Aux]:
        """Return the gradient (P,) that the optimizer gets, the loss () and aux; by default those of `loss`.

        It is called at every step. The gradient of `quadratic` is added to what it returns.
        """
        return gradient_of(self.loss, theta, state, hp, batch)

    def restrict(self, delta: Tensor, g: Tensor, theta: Tensor, state: Tree, hp: Any, batch: Batch) -> Tensor:
        """Return the change (P,) of theta for the optimizer's step delta (P,); by default delta itself.

        It is called after the optimizer, so that a parameter whose change is set to 0 stays fixed with momentum and
        weight decay too. g (P,) is the gradient and theta (P,) the parameters before the step.
        """
        return delta

    def renewal_due(self, state: Tree, hp: Any) -> Tensor | bool:
        """Return whether `renew` has anything to say in this step; by default always.

        Where a run is trained alone on a CPU, `renew` is called only then, to save time: its mask must otherwise be
        False everywhere.
        """
        return True

    def renew(self, theta: Tensor, state: Tree, hp: Any, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Return which parameters (P,) bool begin anew in this step, and their new values (P,); by default None.

        It is called with theta (P,) and the state before the step. These parameters then have the new values after the
        step, and the optimizer's state for them is as before training.
        """
        return None

    def after_step(self, state: Tree, hp: Any, batch: Batch, aux: Aux) -> Tree:
        """Return the state after a step on this batch, with the aux of its loss; by default the state as it is."""
        return state

    def after_move(self, state: Tree, before: Tensor, after: Tensor, aux: Aux) -> Tree:
        """Return the state after a step that moved theta from `before` (P,) to `after` (P,); by default as it is.

        It is called after `after_step` and serves for integrals along the path. To override it costs a copy of theta
        per step.
        """
        return state

    def after_phase(self, phase: str, theta: Tensor, state: Tree, hp: Any, pool: Pool) -> tuple[Tensor, Tree]:
        """Return theta (P,) and the state after a pass over a task; by default both as they are.

        `phase` is one of `phases`, and `pool` has all samples of the stage in random order: `self.data.chunks` gives
        them as batches. The network is in evaluation mode.
        """
        return theta, state

    def deploy(self, theta: Tensor, state: Tree, hp: Any) -> Tensor:
        """Return the parameters (P,) to evaluate; by default theta (P,), which is trained."""
        return theta

    def health(self, state: Tree, hp: Any) -> dict[str, Tensor]:
        """Return columns of health.csv from the state after a task, {column: ()}; by default none."""
        return {}

    # ---------------------------------------------------------------- for strategies: not to be overridden

    def weighing(self, sample_weight: Tensor) -> Self:
        """Return the strategy for inputs x (B, ...) of which sample_weight (B,), 1 or 0, says whether they are there.

        Batch norm leaves out the samples that are not. Without it, the samples of a step's batch are known, and those
        of several batches one after the other count as that batch does; so it is needed for other inputs alone, such as
        samples from a memory that may still be empty.
        """
        return replace(self, net=self.net.weighing(sample_weight))

    # ---------------------------------------------------------------- for the engine: not to be overridden

    def eval_mode(self, statistics: RunningStatistics) -> "Strategy":
        """Return the strategy with the network in evaluation mode, with these running statistics for batch norm."""
        return replace(self, net=self.net.eval_mode(statistics))

    def train_mode(self, sample_weight: Tensor | None, records: list[BatchNormRecord], noise: Tensor) -> "Strategy":
        """Return the strategy for one step, with the network in training mode: see `Net.train_mode`.

        Without batch norm and dropout it is the strategy itself.
        """
        if not (self.net.network.has_batch_norm or self.net.network.has_dropout):
            return self
        return replace(self, net=self.net.train_mode(sample_weight, records, noise))


def later_tasks(health: HealthRows) -> HealthRows:
    """Return the rows of the tasks after the first one of the stream. Of a run that goes on from another one
    (`init_from`), all of them may be."""
    return [row for row in health if row["task"] > 1]


def memories(state: Tree) -> list[AnyMemory]:
    """Return all `Memory` and `RankedMemory` tuples in a state."""
    nodes = tree_leaves(state, is_leaf=lambda node: isinstance(node, AnyMemory))
    return [node for node in nodes if isinstance(node, AnyMemory)]


def accept_former_hooks(cls: type[Strategy]) -> None:
    """Accept hooks that a class or a mix-in of it defines by a former name, with a DeprecationWarning.

    Every class has each hook by both names, so that `super()` with a former name works too. Where a class defines both,
    for this release and the one before, the present name counts.
    """
    for former, name in FORMER_HOOKS.items():
        definer = next(base for base in cls.__mro__ if former in base.__dict__ or name in base.__dict__)
        if name not in definer.__dict__:
            text = f"{cls.__qualname__}.{former} is now called {name}; the former name goes away in the next release."
            warnings.warn(text, DeprecationWarning, stacklevel=3)
            setattr(cls, name, definer.__dict__[former])
        if name in cls.__dict__:
            setattr(cls, former, cls.__dict__[name])
