"""Where the class folders of a user's pictures lie, and which files are pictures. No picture is opened here.

`clrun.data.folder_layouts` decides whether the folders below `dataset.root` are classes or domains.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from clrun.data.decoding import SUFFIXES
from clrun.data.file_digests import FileState
from clrun.system.errors import UsageError

# Files and folders that operating systems leave behind; hidden ones are skipped anyway.
CLUTTER = ("thumbs.db", "desktop.ini", "__macosx")

# Names of the folders of the parts, in any case. Those for validation are named in sentences only.
TRAIN, TEST, VALIDATION = ("train", "training"), ("test", "testing"), ("val", "valid", "validation")


class ClassFolder(NamedTuple):
    """The folder of a class in a part and, where there are domains, of a domain."""

    path: Path
    label: int  # class number
    domain: int | None = None


class FolderLayout(NamedTuple):
    """Where the class folders lie; `test` is None where test images are held out of `train`."""

    root: Path
    classes: tuple[str, ...]  # in Unicode's composed form (NFC)
    train: Path  # the folder in which those for training lie: root/train, or root
    test: Path | None
    train_folders: tuple[ClassFolder, ...]  # domain after domain, and class after class
    test_folders: tuple[ClassFolder, ...]
    domains: tuple[str, ...] = ()  # in Unicode's composed form (NFC)


class Picture(NamedTuple):
    """An image file."""

    path: str
    folder: ClassFolder
    state: FileState


def find_classes(folder: Path, train: Path | None, test: Path | None, test_fraction: float | None) -> FolderLayout:
    """Return where the class folders lie below `folder`, of which train and test are the parts. Raise UsageError if
    they make no data set."""
    if test is not None and train is None:
        raise UsageError(
            f"dataset.root={folder} has class folders in {test.name} but none in train: put the training pictures into "
            f"{folder / 'train'}/<class>/, or all pictures into {folder}/<class>/ and state dataset.test_fraction=0.2."
        )
    base = train or folder
    names = folders_in(base)
    classes = composed(base, names)
    trained = tuple(ClassFolder(base / name, label) for label, name in enumerate(names))
    layout = FolderLayout(folder, classes, base, test, trained, ())
    _check_classes(layout)
    _check_test(layout, test_fraction)
    if test is None:
        return layout
    return layout._replace(test_folders=class_folders_of(test, classes, None))


def class_folders_of(part: Path, classes: Sequence[str], domain: int | None) -> tuple[ClassFolder, ...]:
    """Return the class folders in a folder, in the order of the classes."""
    names = folders_in(part)
    place = dict(zip(composed(part, names), names, strict=True))
    return tuple(ClassFolder(part / place[name], k, domain) for k, name in enumerate(classes) if name in place)


def root_folder(root: str | os.PathLike | None) -> Path:
    """Return the folder of the images. Raise UsageError if none is named or if it is none."""
    if root is None:
        raise UsageError(
            "dataset=image_folder needs the folder of your pictures: dataset.root=path/to/pictures, with "
            "train/<class>/ and test/<class>/ in it, or one folder a class and dataset.test_fraction=0.2."
        )
    folder = Path(root).expanduser()
    if not os.path.isdir(folder):  # False, too, where permission is denied
        what = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise UsageError(
            f"dataset.root={root} {what}: name the folder that holds your pictures, with train/<class>/ and "
            f"test/<class>/ in it, or one folder a class and dataset.test_fraction=0.2."
        )
    return folder


def entries_of(folder: Path) -> list[os.DirEntry]:
    """Return the entries of a folder, sorted by name, without hidden files and clutter."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in CLUTTER]
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be read ({error.strerror}): change its permissions, or name another dataset.root."
        ) from error
    return sorted(seen, key=lambda entry: entry.name)


def folders_in(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder; whole numbers are sorted as such, so that 10 comes after 9.

    A link that leads nowhere or in a circle is none.
    """
    if not os.path.isdir(folder):
        return ()
    return sorted_names(entry.name for entry in entries_of(folder) if os.path.isdir(entry.path))


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names sorted, by number where all are whole numbers."""
    found = sorted(names)
    numbers = all(name.isascii() and name.isdigit() for name in found)
    return tuple(sorted(found, key=lambda name: (int(name), name))) if numbers else tuple(found)


def part_of(root: Path, names: Sequence[str]) -> Path | None:
    """Return the folder of a part, in whatever case its name is written; None where none has class folders.

    Raise UsageError where there are two.
    """
    found = [name for name in folders_in(root) if name.lower() in names and folders_in(root / name)]
    if len(found) > 1:
        raise UsageError(
            f"dataset.root={root} has the folders {' and '.join(found)}, which are both for {names[0]}ing pictures: "
            f"put all of them into {root / names[0]}, and take the other one away."
        )
    return root / found[0] if found else None


def composed(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes in Unicode's composed form. Raise UsageError where two become one."""
    classes = tuple(unicodedata.normalize("NFC", name) for name in names)
    twice = [name for name, n in Counter(classes).items() if n > 1]
    if twice:
        both = [ascii(name) for name, composed in zip(names, classes, strict=True) if composed == twice[0]]
        raise UsageError(
            f"{folder} has two class folders that look alike, {' and '.join(both)}: move the pictures of both into one."
        )
    return classes


def _check_classes(layout: FolderLayout) -> None:
    """Raise UsageError where there are fewer than two class folders, or folders that cannot be classes."""
    unprintable = [name for name in layout.classes if not name.isprintable()]
    if unprintable:
        raise UsageError(
            f"{layout.train} has a class folder with a character that cannot be printed in its name, "
            f"{unprintable[0]!r}: rename it."
        )
    if len(layout.classes) < 2:
        found = f"only the class {layout.classes[0]}" if layout.classes else "no class folders"
        raise UsageError(
            f"dataset.root={layout.root} has {found}: put your pictures into one folder a class, at least two of them, "
            f"{layout.train}/<class>/."
        )
    parts = {name.lower() for name in layout.classes}
    if layout.train == layout.root and parts & {*TRAIN} and parts <= {*TRAIN, *TEST, *VALIDATION}:
        raise UsageError(
            f"dataset.root={layout.root} has pictures in {some_of(layout.classes)} themselves: sort them into one "
            f"folder a class, train/<class>/ and test/<class>/."
        )


def _check_test(layout: FolderLayout, test_fraction: float | None) -> None:
    """Raise UsageError where there are no test images, or two sources of them."""
    validation = [name for name in folders_in(layout.root) if name.lower() in VALIDATION] if layout.test is None else []
    if validation and layout.train != layout.root and test_fraction is None:
        raise UsageError(
            f"dataset.root={layout.root} has the folder {validation[0]}, but no test: clrun holds validation pictures "
            f"out of {layout.train.name} itself, with validation=0.1. If {validation[0]} is meant for testing, rename "
            f"it to test; otherwise put its pictures into {layout.train}/<class>/ and state dataset.test_fraction=0.2."
        )
    if layout.test is None and test_fraction is None:
        raise UsageError(
            f"dataset.root={layout.root} has no test pictures (classes: {some_of(layout.classes)}): put some into "
            f"{layout.root / 'test'}/<class>/ and the others into {layout.root / 'train'}/<class>/, or hold some out "
            f"with dataset.test_fraction=0.2."
        )
    if layout.test is not None and test_fraction is not None:
        raise UsageError(
            f"dataset.root={layout.root} has a test folder, and dataset.test_fraction={test_fraction} would hold out "
            f"other pictures: leave dataset.test_fraction out, or name {layout.train} as dataset.root."
        )
    if layout.test is not None:
        refuse_other_classes(layout.train, layout.classes, layout.test, composed(layout.test, folders_in(layout.test)))


def refuse_other_classes(train: Path, trained: Sequence[str], test: Path, tested: Sequence[str]) -> None:
    """Raise UsageError where a class has a folder in one of train and test alone."""
    for there, here, names, others in ((train, test, trained, tested), (test, train, tested, trained)):
        absent = sorted(set(names) - set(others))
        alike = [(name, other) for name in absent for other in set(others) - set(names) if _look(name) == _look(other)]
        if alike:
            name, other = alike[0]
            raise UsageError(
                f"{there} has the class folder {name!a} and {here} has {other!a}, which differ in spaces or signs "
                f"that cannot be seen: give both the same name."
            )
        if absent:
            raise UsageError(
                f"{some_of([_shown(name) for name in absent])} {'is a class' if len(absent) == 1 else 'are classes'} "
                f"in {there} but not in {here}: each class needs a folder in both; add it to {here}, or take it out of "
                f"{there}."
            )


def _look(name: str) -> str:
    """Return a name without what cannot be seen: case, spaces at the ends, kinds of spaces, invisible signs."""
    visible = "".join(sign for sign in unicodedata.normalize("NFKC", name) if sign.isprintable())
    return " ".join(visible.split()).casefold()


def _shown(name: str) -> str:
    """Return a name as it is, or with escapes where it has spaces at its ends."""
    return name if name == name.strip() else ascii(name)


def some_of(names: Sequence[str]) -> str:
    """Return the first five names as a phrase, and the number of the others."""
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:5])} and {len(names) - 5} more"


def strays(layout: FolderLayout) -> list[str]:
    """Return the paths that lie beside the class folders and belong to none."""
    folders = [folder.path for folder in (*layout.train_folders, *layout.test_folders)]
    holders = [path for folder in folders for path in reversed(folder.parents) if layout.root in (path, *path.parents)]
    used = {str(path) for path in (*folders, *holders)}
    return [entry.path for holder in dict.fromkeys(holders) for entry in entries_of(holder) if entry.path not in used]


def pictures_in(folders: Sequence[ClassFolder], ignored: list[str]) -> list[Picture]:
    """Return the images of every class folder, folder after folder, sorted by name.

    Paths of other files are appended to `ignored`.
    """
    images: list[Picture] = []
    for folder in folders:
        entries = entries_of(folder.path)
        pictures = [entry for entry in entries if entry.name.lower().endswith(SUFFIXES)]
        ignored += [entry.path for entry in entries if not entry.name.lower().endswith(SUFFIXES)]
        if not pictures:
            raise UsageError(
                f"{folder.path} has no pictures: put some there ({some_of(SUFFIXES[:5])} ...; folders within a class "
                f"are not searched), or remove the folder."
            )
        images += [_picture(entry, folder) for entry in pictures]
    return images


def _picture(entry: os.DirEntry, folder: ClassFolder) -> Picture:
    """Return an image file; a link to none has the state zero, and decoding says that it is broken."""
    try:
        stat = os.stat(entry.path)
    except OSError:
        return Picture(entry.path, folder, FileState(0, 0, 0, 0))
    inode = stat.st_ino % 2**63  # which may have 64 bits
    return Picture(entry.path, folder, FileState(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, inode))
