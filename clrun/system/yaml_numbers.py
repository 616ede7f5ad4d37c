"""YAML with numbers as OmegaConf reads them, so that a file means the same to clrun and to Hydra."""

import re

import yaml

# Numbers: YAML 1.1 takes 1e5 for a text, since it has neither a dot nor a sign in its exponent. The pattern is
# OmegaConf's (omegaconf/_utils.py, get_yaml_loader).
FLOAT = r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
    |\.[0-9_]+(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"""


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's where it is installed
    """A loader that reads 1e5 as a number."""


class Dumper(yaml.SafeDumper):
    """A dumper that puts a text such as 1e5 into quotes, so that `Loader` reads a text again."""


for reads_or_writes in (Loader, Dumper):
    reads_or_writes.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(FLOAT, re.X), list("-+0123456789."))
