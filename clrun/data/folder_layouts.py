"""Whether the folders below `dataset.root` are classes or domains, and where the class folders of domains lie.

    root/<class>/                   root/train|test/<class>/
    root/<domain>/<class>/          root/train|test/<domain>/<class>/          root/<domain>/train|test/<class>/

The folders are domains where none of them holds pictures itself, but folders with pictures. No picture is opened here.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clrun.data.class_folders import (
    TEST,
    TRAIN,
    ClassFolder,
    FolderLayout,
    class_folders_of,
    composed,
    find_classes,
    folders_in,
    part_of,
    refuse_other_classes,
    root_folder,
    some_of,
    sorted_names,
)
from clrun.data.decoding import SUFFIXES
from clrun.data.domain_checks import Cells, checked_number
from clrun.data.values import Values
from clrun.system.errors import UsageError


def find(root: str | os.PathLike | None, test_fraction: float | None) -> FolderLayout:
    """Return where the class folders lie, without opening an image. Raise UsageError if they make no data set."""
    folder = root_folder(root)
    train, test = part_of(folder, TRAIN), part_of(folder, TEST)
    if are_domains(train or folder, folder):
        return find_domains(folder, train, test, test_fraction)
    return find_classes(folder, train, test, test_fraction)


def refuse_split(layout: FolderLayout, values: Values) -> None:
    """Raise UsageError, before a picture is read, where the folders do not fit the split.

    Folders of folders are not divided otherwise than by domains: they may be meant as classes, of which nobody would
    notice that they are read as domains.
    """
    if values["split"] == "domains":
        cells = cells_of(layout) if layout.domains else None
        typed = (values[key] for key in ("scenario", "tasks", "first_tasks"))
        checked_number(cells, "image_folder", *typed)
    elif layout.domains:
        raise UsageError(
            f"dataset.root={layout.root}: {layout.train / layout.domains[0]} holds no pictures itself, but folders "
            f"with pictures. If {some_of(layout.domains)} are domains, with the classes {some_of(layout.classes)}, "
            f"type split=domains; if they are classes, put the pictures of each into its folder itself."
        )


def cells_of(layout: FolderLayout) -> Cells:
    """Return which classes the domains have a folder of, in each part."""
    has = np.zeros((2, len(layout.domains), len(layout.classes)), bool)
    for part, folders in enumerate((layout.train_folders, layout.test_folders or layout.train_folders)):
        for folder in folders:
            has[part, folder.domain, folder.label] = True
    return Cells(layout.domains, layout.classes, *has)


# ---------------------------------------------------------------- classes or domains


def are_domains(base: Path, root: Path) -> bool:
    """Return whether the folders in `base` are domains. Raise UsageError where some are and others hold pictures."""
    names = folders_in(base)
    with_pictures = [name for name in names if holds_pictures(base / name)]
    deeper = [name for name in names if name not in with_pictures and holds_folders_of_pictures(base / name)]
    if with_pictures and deeper:
        raise UsageError(
            f"dataset.root={root}: {base / with_pictures[0]} holds pictures itself, and {base / deeper[0]} holds them "
            f"in folders of its own, so that the folders are neither classes nor domains; put the pictures of each "
            f"class into {base}/<class>/, or those of each class of a domain into {base}/<domain>/<class>/."
        )
    return bool(deeper)


def holds_pictures(folder: Path) -> bool:
    """Return whether a picture lies in a folder itself."""
    try:
        with os.scandir(folder) as entries:
            return any(
                entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and not entry.is_dir()
                for entry in entries
            )
    except OSError:  # the reader of the folder says why
        return False


def holds_folders_of_pictures(folder: Path) -> bool:
    """Return whether pictures lie in the folders of a folder, as the classes of a domain, or one level below, as those
    in the train and test of a domain."""
    if not os.access(folder, os.R_OK | os.X_OK):  # the reader of the folder says so
        return False
    inner = [folder / name for name in folders_in(folder)]
    return any(map(holds_pictures, inner)) or any(
        holds_pictures(part / name)
        for part in inner
        if part.name.lower() in (*TRAIN, *TEST) and os.access(part, os.R_OK | os.X_OK)
        for name in folders_in(part)
    )


# ---------------------------------------------------------------- domains


class Parts(NamedTuple):
    """The folders of a domain in which its class folders lie."""

    train: Path
    test: Path | None  # None: test pictures are held out


def find_domains(folder: Path, train: Path | None, test: Path | None, test_fraction: float | None) -> FolderLayout:
    """Return where the class folders of the domains lie. Raise UsageError where the parts are stated twice, for some
    domains alone, or not at all, and where a domain has a class in one part alone."""
    base = train or folder
    if train is None and test is not None:
        raise UsageError(
            f"dataset.root={folder} has domains in {test.name} but none in train: put the training pictures into "
            f"{folder / 'train'}/<domain>/<class>/."
        )
    names = folders_in(base)
    domains = composed(base, names)
    refuse_names(domains, base, folder)
    if test is not None:
        refuse_other_domains(base, domains, test, composed(test, folders_in(test)))
    parts = parts_of_domains(base, train is not None, names, domains, test)
    refuse_parts(folder, parts, test_fraction)
    classes = classes_of(parts)
    trained: list[ClassFolder] = []
    tested: list[ClassFolder] = []
    for number, part in enumerate(parts.values()):
        trained += class_folders_of(part.train, classes, number)
        tested += [] if part.test is None else class_folders_of(part.test, classes, number)
    test = (test or folder) if tested else None
    return FolderLayout(folder, classes, base, test, tuple(trained), tuple(tested), domains)


def parts_of_domains(
    base: Path, above: bool, names: Sequence[str], domains: Sequence[str], test: Path | None
) -> dict[str, Parts]:
    """Return the parts of each domain: in it, or above it. Raise UsageError where they are in both, and where some
    domains have them alone.

    base, test: the folders of the domains. above: whether `base` is a folder for training. names: on the disk.
    """
    place = {} if test is None else dict(zip(composed(test, folders_in(test)), folders_in(test), strict=True))
    inside = {name: (part_of(base / name, TRAIN), part_of(base / name, TEST)) for name in names}
    stated = [name for name, (train, held) in inside.items() if train is not None or held is not None]
    if stated and above:
        raise UsageError(
            f"{base / stated[0]} has folders for training and testing, and lies in one itself; state the parts once, "
            "as train/<domain>/<class>/ and test/<domain>/<class>/, or as <domain>/train/<class>/ and "
            "<domain>/test/<class>/."
        )
    parts = {}
    for name, domain in zip(names, domains, strict=True):
        train, held = inside[name]
        if stated and (train is None or held is None):
            raise UsageError(
                f"{base / name} has no folder {'train' if train is None else 'test'} with class folders, but "
                f"{base / stated[0]} has parts of its own; give every domain train/<class>/ and test/<class>/."
            )
        if train is not None:
            refuse_classes_beside(base / name, [part.name for part in (train, held) if part is not None])
        parts[domain] = Parts(train or base / name, held or (None if test is None else test / place[domain]))
    return parts


def refuse_classes_beside(domain: Path, parts: Sequence[str]) -> None:
    """Raise UsageError where a domain has class folders beside its parts."""
    beside = [name for name in folders_in(domain) if name not in parts and holds_pictures(domain / name)]
    if beside:
        raise UsageError(
            f"{domain} has the folders {' and '.join(parts)}, and beside them {beside[0]} with pictures: are they "
            f"parts or classes? Put {beside[0]} into both parts, or rename {parts[0]} if it is a class."
        )


def classes_of(parts: Mapping[str, Parts]) -> tuple[str, ...]:
    """Return the names of all classes. Raise UsageError where a domain has one in one part alone, or none at all, and
    where there is one class only."""
    found: list[str] = []
    for domain, part in parts.items():
        trained = composed(part.train, folders_in(part.train))
        if not trained:
            raise UsageError(f"{part.train} has no class folders: domain {domain} needs <class>/ with pictures in it.")
        if part.test is not None:
            refuse_other_classes(part.train, trained, part.test, composed(part.test, folders_in(part.test)))
        found += trained
    classes = sorted_names(dict.fromkeys(found))
    unprintable = [name for name in classes if not name.isprintable()]
    if unprintable:
        raise UsageError(f"the class folder {unprintable[0]!r} has a character that cannot be printed: rename it.")
    if len(classes) < 2:
        raise UsageError(
            f"the domains {some_of(list(parts))} have the one class {classes[0]}, which leaves nothing to tell apart: "
            "put the pictures of each class of a domain into <domain>/<class>/."
        )
    return classes


def refuse_names(domains: Sequence[str], base: Path, root: Path) -> None:
    """Raise UsageError for a single domain, and for one whose name cannot be printed."""
    if len(domains) < 2:
        raise UsageError(
            f"dataset.root={root} has the one domain {domains[0]}, with class folders in it: name {base / domains[0]} "
            f"as dataset.root, or put every domain into {base}/<domain>/<class>/."
        )
    unprintable = [name for name in domains if not name.isprintable()]
    if unprintable:
        raise UsageError(f"{base} has the folder {unprintable[0]!r}, whose name cannot be printed: rename it.")


def refuse_other_domains(train: Path, trained: Sequence[str], test: Path, tested: Sequence[str]) -> None:
    """Raise UsageError where a domain has a folder in one part alone."""
    for there, here, names, others in ((train, test, trained, tested), (test, train, tested, trained)):
        absent = sorted(set(names) - set(others))
        if absent:
            raise UsageError(
                f"{some_of(absent)} {'is a domain' if len(absent) == 1 else 'are domains'} in {there} but not in "
                f"{here}: each domain needs a folder in both; add it to {here}, or take it out of {there}."
            )


def refuse_parts(root: Path, parts: Mapping[str, Parts], test_fraction: float | None) -> None:
    """Raise UsageError where there are no test pictures, or two sources of them."""
    stated = next(iter(parts.values())).test is not None
    if not stated and test_fraction is None:
        raise UsageError(
            f"dataset.root={root} has no test pictures (domains: {some_of(list(parts))}): put them into "
            f"{root}/<domain>/test/<class>/ and the others into {root}/<domain>/train/<class>/, or hold some out with "
            "dataset.test_fraction=0.2."
        )
    if stated and test_fraction is not None:
        raise UsageError(
            f"dataset.root={root} has test folders, and dataset.test_fraction={test_fraction} would hold out other "
            "pictures: leave dataset.test_fraction out."
        )
