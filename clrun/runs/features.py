"""From a run's settings to the frozen network whose features it learns from, if it has one."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clrun.config.settings import Settings
from clrun.data.feature_record import FeatureRecord
from clrun.models.frozen import FrozenNetwork
from clrun.models.libraries import DEFAULT
from clrun.runs.build import ready_device, settings_of_group
from clrun.runs.targets import named_class

# Changed with what is done to a picture before a network sees it: part of the identity and of the names of cache files.
RULE = 1


@dataclass(frozen=True)
class RunExtractor:
    """The frozen network of a run: an `Extractor` (clrun/data/features.py)."""

    network: FrozenNetwork
    digest: str  # 20 hexadecimal digits
    record: FeatureRecord

    @property
    def about(self) -> str:
        """What the network is, as typed."""
        return self.network.where

    def __call__(self, pictures: np.ndarray, /) -> np.ndarray:
        """Return the features (n, F) float32 of pictures (n, C, H, W) uint8."""
        return self.network(pictures)


@dataclass(frozen=True)
class ExtractorMaker:
    """A function from the shape of pictures to the frozen network of a run; equal for equal settings."""

    settings: Settings

    def __call__(self, shape: Sequence[int]) -> RunExtractor:
        """Return the frozen network for pictures of a shape (C, H, W). Raise UsageError if there can be none."""
        network = frozen_network(self.settings, shape)
        stated = json.dumps([RULE, network.digest, identifying(self.settings.values, self.settings.outside_identity)])
        digest = hashlib.blake2b(stated.encode(), digest_size=10).hexdigest()
        return RunExtractor(
            network, digest, FeatureRecord(tuple(shape), network.digest, file_of_weights(self.settings))
        )


def identifying(values: Mapping[str, Any], left_out: frozenset[str]) -> dict[str, Any]:
    """Return the values of the keys of the features that are part of a run's identity."""
    return {key: v for key, v in sorted(values.items()) if is_key(key) and key not in left_out}


def is_key(key: str) -> bool:
    """Return whether a key is `features` or one of its option's."""
    return key == "features" or key.startswith("features.")


def extractor_maker(settings: Settings) -> ExtractorMaker | None:
    """Return the maker of a run's frozen network; None for a run that learns from the samples as they are."""
    return ExtractorMaker(settings) if settings.get("features", None) is not None else None


def file_of_weights(settings: Settings) -> str | None:
    """Return the file of the frozen network's weights, as an absolute path; None where they are no file's."""
    weights = settings.get("features.weights", None)
    return None if weights in (None, DEFAULT) else os.path.abspath(weights)


def frozen_network(settings: Settings, shape: Sequence[int]) -> FrozenNetwork:
    """Return the frozen network that the settings name, for pictures of a shape (C, H, W), on the run's device. Raise
    UsageError if there can be none."""
    kind = named_class(settings, "features", FrozenNetwork)
    network = kind(tuple(shape), **settings_of_group("features", settings))
    network.place(ready_device(settings["device"]))
    return network
