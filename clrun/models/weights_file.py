"""Files of weights: safetensors, or what `torch.save(module.state_dict(), FILE)` writes. Nothing is ever unpickled.

A file is read by safetensors, or by `torch.load` with `weights_only=True`, which refuses all but tensors and plain
containers.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from clrun.system.errors import UsageError

# Where training scripts put the weights in what they save.
WRAPPERS = ("state_dict", "model", "model_state_dict", "module")

PREFIX = "module."  # of every name, where the weights were saved from nn.DataParallel


def digest_of_file(path: str, key: str = "model.weights") -> str:
    """Return 16 hexadecimal digits of a file's bytes. Raise UsageError if it cannot be read. key: that names it."""
    try:
        stat = Path(path).stat()
        return digest_of_version(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise UsageError(
            f"{key}={path} cannot be read: {error.strerror}; put the file back, or name it where it lies."
        ) from None


@lru_cache(maxsize=4)
def digest_of_version(path: str, size: int, changed: int) -> str:
    """Return the digest of a file that was last changed at a time; it is computed once."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_weights(path: str, key: str) -> dict[str, Tensor]:
    """Return {name: tensor} of a file of weights. Raise UsageError if it is none. key: that names it."""
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise UsageError(
            f"{key}={path} cannot be read: {error.strerror}; put the file back, or name it where it lies."
        ) from None
    return weights_of_version(path, key, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)
def weights_of_version(path: str, key: str, size: int, changed: int) -> dict[str, Tensor]:
    """Return what `read_weights` does, for a file that was last changed at a time; it is read once."""
    try:
        content = read_any(Path(path))
    except Exception as error:  # libraries raise a dozen kinds for a damaged file
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(error, UnpicklingError):  # of which PyTorch says how it could be unpickled all the same
            reason = "it holds other things than tensors, or is damaged, and nothing is ever unpickled"
        raise UsageError(
            f"{key}={path} is no file of weights ({reason}); save a module by "
            "torch.save(module.state_dict(), FILE), or by safetensors."
        ) from None
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UsageError(
            f"{key}={path} holds something else than weights by name; save a module by "
            "torch.save(module.state_dict(), FILE), or by safetensors."
        )
    prefixed = all(name.startswith(PREFIX) for name in content)
    return {name.removeprefix(PREFIX) if prefixed else name: v for name, v in content.items()}


def read_any(path: Path) -> Any:
    """Return the content of a file, on the CPU."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def load_weights(
    module: nn.Module, weights: str | Mapping[str, Tensor], head: str | None, where: str, key: str = "model.weights"
) -> None:
    """Write the weights of a file, or {name: tensor}, into the module.

    The head at path `head` keeps its own values where the file has others' shapes or none. Raise UsageError if other
    names or shapes differ. key: that names the weights.
    """
    read = read_weights(weights, key) if isinstance(weights, str) else weights
    wanted = module.state_dict()
    of_head = [name for name in wanted if head is not None and name.rpartition(".")[0] == head]
    fits = all(name in read and read[name].shape == wanted[name].shape for name in of_head)
    kept = {name for name in wanted if not fits and name in of_head}
    missing = [n for n in wanted if n not in read and n not in kept and not n.endswith("num_batches_tracked")]
    unknown = [n for n in read if n not in wanted and not (kept and n.rpartition(".")[0] == head)]
    shapes = [n for n in wanted if n in read and n not in kept and read[n].shape != wanted[n].shape]
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    problems = [f"it lacks {missing[0]}{others}"] if missing else []
    problems += [f"it has {unknown[0]}, which the network has not"] if unknown else []
    problems += [f"{n} is {tuple(read[n].shape)} there and {tuple(wanted[n].shape)} in the network" for n in shapes[:1]]
    if problems:
        named = f"{key}={weights}" if isinstance(weights, str) else f"{key}=DEFAULT"
        raise UsageError(f"{named} does not fit {where}: {'; '.join(problems)}.")
    module.load_state_dict({n: v for n, v in read.items() if n in wanted and n not in kept}, strict=False)
