"""Networks of torchvision and timm by name, with random weights, those of the library, or those of a file."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from clrun.models.module import ModuleNetwork
from clrun.models.weights_file import digest_of_file
from clrun.system.errors import UsageError

DEFAULT = "DEFAULT"  # the value of model.weights that stands for the library's own weights

# Arguments of torchvision's networks that return several tensors in training unless they are told otherwise.
ONE_OUTPUT = {"googlenet": {"aux_logits": False, "init_weights": False}, "inception_v3": {"aux_logits": False}}


class LibraryNetwork(ModuleNetwork):
    """A network of a library by its name, `arch`; `args`, `weights` and `train` are those of `ModuleNetwork`."""

    library: str

    def __init__(
        self, inputs: Sequence[int], outputs: int, arch: str | None, args: Mapping[str, Any] | None,
        weights: str | None, train: str,
    ):  # fmt: skip
        if arch is None:
            raise UsageError(f"model={self.library} needs a network: type model.arch=..., such as {self.smallest()}.")
        if arch not in self.names():
            near = difflib.get_close_matches(arch, self.names(), 1)
            meant = f"; did you mean {near[0]}?" if near else f", such as {self.smallest()}."
            raise UsageError(f"model.arch={arch}: {self.library} has no classification network of that name{meant}")
        self.where, self.channels = f"model.arch={arch}", int(dict(args or {}).get("in_chans", 3))
        module = self.called(lambda: self.made_by_library(arch, outputs, dict(args or {})))
        values: str | Mapping[str, Tensor] | None = self.own_weights(arch) if weights == DEFAULT else weights
        self.adopt(module, inputs, outputs, values, train, "auto")

    def made_by_library(self, arch: str, outputs: int, args: dict[str, Any]) -> nn.Module:
        """Return the module, with random weights."""
        raise NotImplementedError

    @classmethod
    def names(cls) -> Sequence[str]:
        """Return the names of all networks."""
        raise NotImplementedError

    @staticmethod
    def smallest() -> str:
        """Return the name of a small network."""
        raise NotImplementedError

    @classmethod
    def own_weights(cls, arch: str) -> Mapping[str, Tensor]:
        """Return the weights that the library has for a network, downloaded where they are not there."""
        raise NotImplementedError

    @classmethod
    def source_of_weights(cls, arch: str) -> str:
        """Return which weights `own_weights` returns."""
        raise NotImplementedError


class TorchvisionNetwork(LibraryNetwork):
    """A classification network of torchvision."""

    library = "torchvision"

    def made_by_library(self, arch: str, outputs: int, args: dict[str, Any]) -> nn.Module:
        import torchvision

        return torchvision.models.get_model(
            arch, weights=None, **({"num_classes": outputs} | ONE_OUTPUT.get(arch, {}) | args)
        )

    @classmethod
    def names(cls) -> Sequence[str]:
        import torchvision  # seconds

        return torchvision.models.list_models(module=torchvision.models)

    @staticmethod
    def smallest() -> str:
        return "resnet18, mobilenet_v3_small or vit_b_16"

    @classmethod
    def own_weights(cls, arch: str) -> Mapping[str, Tensor]:
        return downloaded(arch, lambda: torchvision_weights(arch).get_state_dict(progress=True, check_hash=True))

    @classmethod
    def source_of_weights(cls, arch: str) -> str:
        return str(torchvision_weights(arch))


def torchvision_weights(arch: str) -> Any:
    """Return torchvision's best weights of a network."""
    import torchvision

    return torchvision.models.get_model_weights(arch).DEFAULT


class TimmNetwork(LibraryNetwork):
    """A network of timm (Wightman, "PyTorch Image Models")."""

    library = "timm"

    def made_by_library(self, arch: str, outputs: int, args: dict[str, Any]) -> nn.Module:
        return timm().create_model(arch, pretrained=False, **({"num_classes": outputs} | args))

    @classmethod
    def names(cls) -> Sequence[str]:
        return timm_names()

    @staticmethod
    def smallest() -> str:
        return "resnet18 or mobilenetv3_small_050"

    @classmethod
    def own_weights(cls, arch: str) -> Mapping[str, Tensor]:
        return downloaded(arch, lambda: timm().create_model(arch, pretrained=True).state_dict())

    @classmethod
    def source_of_weights(cls, arch: str) -> str:
        pretrained = timm().models.get_pretrained_cfg(arch)
        return f"{arch}.{pretrained.tag if pretrained else ''}"


def timm() -> ModuleType:
    """Return the library timm. Raise UsageError if it is not installed."""
    try:
        import timm as library
    except ModuleNotFoundError:
        raise UsageError("model=timm needs the library timm: pip install 'clrun[timm]'.") from None
    return library


@lru_cache(maxsize=1)
def timm_names() -> list[str]:
    """Return the names of timm's networks."""
    return timm().list_models()


def downloaded(arch: str, load: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Return what `load` returns. Raise UsageError if it fails, as without a network or without such weights."""
    try:
        return load()
    except Exception as error:  # libraries raise a dozen kinds for a failed download
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"model.weights=DEFAULT: the weights of {arch} cannot be loaded ({type(error).__name__}: {reason}); try "
            "again with a network, or name a file of weights: model.weights=FILE."
        ) from None


LIBRARIES: dict[str, type[LibraryNetwork]] = {kind.library: kind for kind in (TorchvisionNetwork, TimmNetwork)}


def source_of_weights(model: str, arch: str | None, weights: str) -> str:
    """Return what identifies the weights of a network: a digest of a file, or their name in a library."""
    if weights == DEFAULT and model in LIBRARIES and arch is not None:
        try:
            return LIBRARIES[model].source_of_weights(arch)
        except (ValueError, KeyError):  # there is no such network, which is refused where it is made
            return DEFAULT
    return DEFAULT if weights == DEFAULT else digest_of_file(weights)


def source_of_library(model: str) -> str | None:
    """Return name and version of a library that defines networks and may define them otherwise in another version."""
    return f"timm {version('timm')}" if model == "timm" and timm() else None
