"""From the network of a finished run to files that other programs read: ONNX, TorchScript, or weights by name.

An exported network is `clrun.runs.answering.Answering` as a graph of tensor operations, with a softmax at its end: what
is done to a sample before the network sees it, and masks and gates of a strategy, are part of the graph. PyTorch traces
it with a symbolic number of samples (torch.export); nothing of clrun is needed to run it.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clrun.models import Layout
from clrun.runs.answering import Answering, AnsweringPictures, answering_in, answering_settings, rebuilt
from clrun.runs.checkpoint import save_tensors
from clrun.runs.network_file import DeployedNetwork
from clrun.strategy import Strategy
from clrun.system.atomic_files import replacing, write_text
from clrun.system.errors import UsageError

# The largest difference of two probabilities of one picture that may come from the order of sums.
TOLERANCE = 1e-4

# Samples of the pass by which a graph is made, and of the one by which it is compared.
TRACED, COMPARED = 2, 3

# The key of what is known of a network, in the metadata of an exported file; as a file, it is FILE.json.
KEY = "clrun"


class Exported(nn.Module):
    """A deployed network as others use it: samples -> probabilities of the classes that may answer.

    from_unit: whether pictures are floats from 0 to 1 in place of whole numbers from 0 to 255.
    """

    def __init__(self, answer: Answering | AnsweringPictures, from_unit: bool) -> None:
        super().__init__()
        self.answer, self.from_unit = answer, from_unit

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities (N, K) for samples x (N, ...)."""
        if self.from_unit:
            x = (x * 255).round().clamp(0, 255).to(torch.uint8)
        return self.answer(x).softmax(-1)


def description(network: DeployedNetwork, task: int, from_unit: bool) -> dict[str, Any]:
    """Return what a user of an exported network must know, as JSON."""
    shape, floats = [*network.shape_of_new], network.takes_floats
    numbers = "the inputs that columns become" if network.columns else "numbers as in the data set"
    kind = numbers if floats else "a picture of whole numbers from 0 to 255"
    values = "a picture of numbers from 0 to 1" if from_unit else kind
    active = network.input["active"][task].nonzero()[:, 0].tolist()
    columns = {"columns": [rule._asdict() for rule in network.columns]} if network.columns else {}
    return columns | {
        "run": network.identity,
        "input": {"shape": ["N", *shape], "type": "float32" if floats or from_unit else "uint8", "is": values},
        "output": {"shape": ["N", len(active)], "is": "the probability of each class"},
        "classes": [network.names[output] for output in active],
        "task": task + 1,
    }


def samples_like(network: DeployedNetwork, shape: list[int], from_unit: bool, n: int) -> Tensor:
    """Return n samples of this shape, of the type that the exported network takes; no random number is drawn."""
    values = torch.arange(n * int(torch.Size(shape).numel()), dtype=torch.float64).mul(12.9898).sin()
    x = values.view(n, *shape)
    if network.takes_floats:
        return x.float()
    return ((x + 1) / 2).float() if from_unit else ((x + 1) * 127.5).to(torch.uint8)


def write_graph(network: DeployedNetwork, task: int, kind: str, from_unit: bool, path: Path) -> dict[str, Any]:
    """Write a network as `kind`, "onnx" or "torchscript", and its description beside it; return the description.

    Raise UsageError where a library is missing or the network cannot be exported, and InvalidCheckpoint.
    """
    writer = writer_of(kind)
    about = description(network, task, from_unit)
    shape = about["input"]["shape"][1:]
    # in the precision of the weights: runtimes have no bfloat16 on a CPU
    module = Exported(answering_in(network, task, None), from_unit).eval()
    program = traced(module, samples_like(network, shape, from_unit, TRACED), kind)
    with replacing(path) as temporary:
        answer = writer(program, samples_like(network, shape, from_unit, TRACED), json.dumps(about), temporary)
        x = samples_like(network, shape, from_unit, COMPARED)
        if answer is not None:
            refuse_unequal(answer, module, x, kind)
    write_text(path.with_name(f"{path.name}.json"), json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    return about


def refuse_unequal(answer: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, kind: str) -> None:
    """Raise UsageError where an exported network answers to samples x another thing than the run's, or not at all."""
    with torch.no_grad():
        mine = module(x)
    try:
        theirs, reason = answer(x), "its answers are others"
    except RuntimeError as error:  # of TorchScript and of ONNX Runtime, where an operation takes no other batch
        theirs, reason = mine.new_empty(0), reason_of(error)
    if theirs.shape != mine.shape or not (theirs - mine).abs().max() <= TOLERANCE:
        raise not_the_networks_answer(kind, reason)


def not_the_networks_answer(kind: str, reason: str) -> UsageError:
    """Return the refusal of an export that would not answer as the run's network does."""
    instead = "--to onnx" if kind == "torchscript" else "--to state_dict, and use the weights in your own code"
    return UsageError(
        f"--to {kind}: what was exported does not answer as the run's network does ({reason}), so nothing was "
        f"written; type {instead}."
    )


def traced(module: nn.Module, x: Tensor, kind: str) -> Any:
    """Return the graph of a module for any number of samples. Raise UsageError where there is none."""
    try:
        with torch.no_grad():
            return torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("N")},))
    except Exception as error:  # any: a user's module may do what cannot be traced
        raise UsageError(
            f"--to {kind}: the network cannot be written as a graph ({reason_of(error)}); its forward pass may have a "
            "Python `if` on the value of a tensor. Type --to state_dict, and use the weights in your own code."
        ) from None


def reason_of(error: Exception) -> str:
    """Return the kind and the first line of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# A writer: (graph, sample inputs, description, path) -> a function that answers by the file; None if nothing can here.
Writer = Callable[[Any, Tensor, str, Path], Callable[[Tensor], Tensor] | None]


def writer_of(kind: str) -> Writer:
    """Return what writes a graph as `kind`. Raise UsageError where a library is missing."""
    if kind == "torchscript":
        return write_torchscript
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"--to onnx needs the library {error.name}: pip install 'clrun[export]'.") from None
    return write_onnx


def write_onnx(program: Any, x: Tensor, about: str, path: Path) -> Callable[[Tensor], Tensor] | None:
    """Write a graph as ONNX; return a function that answers by it, if onnxruntime is installed."""
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries on each other, not on the network
        exported = torch.onnx.export(
            program, (x,), dynamo=True, input_names=["input"], output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("N")},), verbose=False, external_data=False,
        )  # fmt: skip
    assert exported is not None  # without a path, it is returned
    model = exported.model_proto
    onnx.helper.set_model_props(model, {KEY: about})
    path.write_bytes(model.SerializeToString())
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda samples: torch.from_numpy(session.run(None, {"input": samples.numpy()})[0])


def write_torchscript(program: Any, x: Tensor, about: str, path: Path) -> Callable[[Tensor], Tensor]:
    """Write a graph as TorchScript; return a function that answers by it.

    Raise UsageError where it cannot be traced.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, that TorchScript is no longer developed
        try:
            script = torch.jit.trace(of_any_size(program.module()), (x,), check_trace=False)
        except RuntimeError as error:  # of an operation that does not take -1 for the number of samples
            raise not_the_networks_answer("torchscript", reason_of(error)) from None
        torch.jit.save(script, str(path), _extra_files={KEY: about})
        return torch.jit.load(str(path))


# The operations of a graph that take -1 for the number of samples, and the place of their list of sizes.
RESHAPES = (torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten.expand.default)


def of_any_size(graph: Any) -> Any:
    """Return a graph in which no number of samples is an argument of an operation, which a trace would fix."""
    sizes = [node for node in graph.graph.nodes if node.target is torch.ops.aten.sym_size.int]
    for node in graph.graph.nodes:
        if node.target in RESHAPES:
            shape = [-1 if size in sizes else size for size in node.args[1]]
            node.args = (node.args[0], shape, *node.args[2:])
    for node in sizes:
        if not node.users:
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


# ---------------------------------------------------------------- weights by name


def write_state_dict(network: DeployedNetwork, path: Path) -> dict[str, Any]:
    """Write the weights of a network, by the names that its module has, as safetensors; return the description.

    Raise UsageError where the strategy answers by more than the network, and InvalidCheckpoint.
    """
    settings = answering_settings(network)
    layout = Layout({name: tuple(v.shape) for name, v in network.weights.items()})
    strategy = rebuilt(network, settings, layout, None)
    if type(strategy).logits is not Strategy.logits or type(strategy).scores is not Strategy.scores:
        raise UsageError(
            f"--to state_dict: strategy={settings['strategy']} answers by more than weights (masks, gates, "
            "means of features or several networks); type --to onnx or --to torchscript, in which they are."
        )
    named = strategy.net.network.state_dict(network.weights, dict(network.statistics))
    about = {
        "run": network.identity,
        "classes": list(network.names),
        "scale": numbers(network.input["scale"]),
        "shift": numbers(network.input["shift"]),
        "input": inputs_of_weights(network),
    }
    tensors = {name: v.detach().cpu().contiguous().clone() for name, v in named.items()}
    with replacing(path) as temporary:
        save_tensors(tensors, metadata_of(about), temporary)
    write_text(path.with_name(f"{path.name}.json"), json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    return about


def inputs_of_weights(network: DeployedNetwork) -> str:
    """Return what the network is given in place of a sample."""
    if network.features is None:
        return "number * scale + shift, by channel"
    values = network.settings
    named = [key for key in ("features.target", "features.arch") if values.get(key, None) is not None]
    frozen = f"features={values['features']} {' '.join(f'{key}={values[key]}' for key in named)}".strip()
    return f"feature * scale + shift, of the {network.shape[0]} features that {frozen} makes of a picture"


def metadata_of(about: Mapping[str, Any]) -> dict[str, str]:
    """Return a description as the metadata of a safetensors file, which holds texts alone."""
    return {KEY: json.dumps(about)}


def numbers(v: Tensor) -> list[float]:
    """Return the numbers of a tensor as a list."""
    return v.flatten().tolist()
