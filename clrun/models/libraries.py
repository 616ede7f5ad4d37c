"""Networks of torchvision and timm by name, with random weights, those of the library, or those of a file."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from clrun.models.making import called
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
        library = LIBRARIES[self.library]
        name = library.known(arch, "model")
        self.where, self.channels = f"model.arch={name}", channels_of(args)
        module = called(lambda: library.make(name, {"num_classes": outputs} | dict(args or {})), self.where)
        values: str | Mapping[str, Tensor] | None = (
            library.own_weights(name, "model") if weights == DEFAULT else weights
        )
        self.adopt(module, inputs, outputs, values, train, "auto")


class TorchvisionNetwork(LibraryNetwork):
    """A classification network of torchvision."""

    library = "torchvision"


class TimmNetwork(LibraryNetwork):
    """A network of timm (Wightman, "PyTorch Image Models")."""

    library = "timm"


def channels_of(args: Mapping[str, Any] | None) -> int:
    """Return the channels of the pictures that a library's network takes. Raise UsageError if that is no number."""
    channels = dict(args or {}).get("in_chans", 3)
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise UsageError(
            f"in_chans:{channels} in args: the channels must be a whole number, at least 1, as in_chans:3."
        )
    return channels


# ---------------------------------------------------------------- the libraries


class Library:
    """A library of networks for pictures. group: `model` or `features`, whose keys messages name."""

    name: str

    @classmethod
    def known(cls, arch: str | None, group: str) -> str:
        """Return the name of a network. Raise UsageError if the library has none of that name."""
        if arch is None:
            raise UsageError(f"{group}={cls.name} needs a network: type {group}.arch=..., such as {cls.smallest()}.")
        names = cls.names()
        if arch not in names:
            near = difflib.get_close_matches(arch, names, 1)
            meant = f"; did you mean {near[0]}?" if near else f", such as {cls.smallest()}."
            raise UsageError(f"{group}.arch={arch}: {cls.name} has no classification network of that name{meant}")
        return arch

    @classmethod
    def make(cls, arch: str, args: Mapping[str, Any]) -> nn.Module:
        """Return a network with random weights."""
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
    def own_weights(cls, arch: str, group: str) -> Mapping[str, Tensor]:
        """Return the weights that the library has for a network, downloaded where they are not there. Raise UsageError
        if that fails."""
        raise NotImplementedError

    @classmethod
    def source_of_weights(cls, arch: str) -> str:
        """Return which weights `own_weights` returns."""
        raise NotImplementedError


class Torchvision(Library):
    """torchvision and its classification networks."""

    name = "torchvision"

    @classmethod
    def make(cls, arch: str, args: Mapping[str, Any]) -> nn.Module:
        import torchvision

        return torchvision.models.get_model(arch, weights=None, **(ONE_OUTPUT.get(arch, {}) | dict(args)))

    @classmethod
    def names(cls) -> Sequence[str]:
        import torchvision  # seconds

        return torchvision.models.list_models(module=torchvision.models)

    @staticmethod
    def smallest() -> str:
        return "resnet18, mobilenet_v3_small or vit_b_16"

    @classmethod
    def own_weights(cls, arch: str, group: str) -> Mapping[str, Tensor]:
        return downloaded(arch, group, lambda: torchvision_weights(arch).get_state_dict(progress=True, check_hash=True))

    @classmethod
    def source_of_weights(cls, arch: str) -> str:
        return str(torchvision_weights(arch))


def torchvision_weights(arch: str) -> Any:
    """Return torchvision's best weights of a network."""
    import torchvision

    return torchvision.models.get_model_weights(arch).DEFAULT


class Timm(Library):
    """timm and its networks."""

    name = "timm"

    @classmethod
    def make(cls, arch: str, args: Mapping[str, Any]) -> nn.Module:
        return timm().create_model(arch, pretrained=False, **args)

    @classmethod
    def names(cls) -> Sequence[str]:
        return timm_names()

    @staticmethod
    def smallest() -> str:
        return "resnet18 or mobilenetv3_small_050"

    @classmethod
    def own_weights(cls, arch: str, group: str) -> Mapping[str, Tensor]:
        return downloaded(arch, group, lambda: timm().create_model(arch, pretrained=True).state_dict())

    @classmethod
    def source_of_weights(cls, arch: str) -> str:
        pretrained = timm().models.get_pretrained_cfg(arch)
        return f"{arch}.{pretrained.tag if pretrained else ''}"


def timm() -> ModuleType:
    """Return the library timm. Raise UsageError if it is not installed."""
    try:
        import timm as library
    except ModuleNotFoundError:
        raise UsageError("networks of timm need the library timm: pip install 'clrun[timm]'.") from None
    return library


@lru_cache(maxsize=1)
def timm_names() -> list[str]:
    """Return the names of timm's networks."""
    return timm().list_models()


def downloaded(arch: str, group: str, load: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Return what `load` returns. Raise UsageError if it fails, as without a network or without such weights."""
    try:
        return load()
    except Exception as error:  # libraries raise a dozen kinds for a failed download
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{group}.weights=DEFAULT: the weights of {arch} cannot be loaded ({type(error).__name__}: {reason}); try "
            f"again with a network, or name a file of weights: {group}.weights=FILE."
        ) from None


LIBRARIES: dict[str, type[Library]] = {kind.name: kind for kind in (Torchvision, Timm)}


def source_of_weights(option: str, arch: str | None, weights: str, group: str = "model") -> str:
    """Return what identifies the weights of a network: a digest of a file, or their name in a library.

    option: of the group `model` or `features`. Raise UsageError if the file cannot be read.
    """
    if weights == DEFAULT and option in LIBRARIES and arch is not None:
        try:
            return LIBRARIES[option].source_of_weights(arch)
        except (ValueError, KeyError):  # there is no such network, which is refused where it is made
            return DEFAULT
    return DEFAULT if weights == DEFAULT else digest_of_file(weights, f"{group}.weights")


def source_of_library(option: str | None) -> str | None:
    """Return name and version of a library that defines networks and may define them otherwise in another version."""
    return f"timm {version('timm')}" if option == "timm" and timm() else None
