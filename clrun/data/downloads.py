"""Downloads of the MNIST family and CIFAR through torchvision."""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clrun.system.errors import UsageError

# The names of torchvision's classes; for the MNIST family they are also the names of the folders.
TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}

# Endings of archives that are of no use once they are unpacked.
PACKED = (".zip", ".tgz", ".tar", ".gz")

# Seconds: a server that is silent for so long counts as no network.
STALLED_SECONDS = 10.0


def obtain(name: str, folder: Path, place: Path, files: Sequence[str], archives: Sequence[str]) -> None:
    """Download what is missing of `files` in `place`, a folder below the data folder `folder`.

    Archives that are there already are unpacked without network. Raise UsageError where the files cannot be had.
    """
    missing = [file for file in files if not os.path.isfile(place / file)]
    if not missing:
        return
    import http.client  # 20 ms, only for the name of its exception

    try:
        with _made(folder), _socket_timeout(), tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as stage:
            _download(name, folder, Path(stage), place, archives)
    except (OSError, RuntimeError, EOFError, gzip.BadGzipFile, http.client.HTTPException) as error:
        raise _absent_error(name, folder, place, missing, archives, error) from error


def _download(name: str, folder: Path, stage: Path, place: Path, archives: Sequence[str]) -> None:
    """Let torchvision download into `stage`, and move the files that are missing in `place` there."""
    import torchvision  # seconds, and only for a download

    target = stage / place.relative_to(folder)
    # torchvision reads archives beside the files of MNIST, but in the data folder itself for CIFAR
    source, copies = (place, target) if name not in ("cifar10", "cifar100") else (folder, stage)
    for archive in archives:
        if (source / archive).is_file():
            copies.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / archive, copies / archive)
    getattr(torchvision.datasets, TORCHVISION[name])(stage, download=True)
    place.mkdir(parents=True, exist_ok=True)
    for file in target.iterdir():
        if file.name not in archives and not (place / file.name).exists():
            os.replace(file, place / file.name)


def download_errors() -> tuple[type[Exception], ...]:
    """Return what torchvision raises where a file cannot be downloaded or unpacked; ImportError where it needs a
    library for that."""
    import http.client  # 20 ms, only for the names of exceptions
    import tarfile
    import zipfile

    packed = (gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)
    return OSError, RuntimeError, ValueError, ImportError, http.client.HTTPException, *packed


def fetch(folder: Path, files: Sequence[str], download: Callable[[Path], object], keep_archives: bool) -> None:
    """Let `download` fill a new folder below the data folder, and move what is not in the data folder yet there.

    files: what it downloads, as paths below the data folder; those that are there already are copied for it, so that
    archives are unpacked without network. keep_archives: whether archives are moved, too. Raise one of
    `download_errors()`.
    """
    with _made(folder), _socket_timeout(), tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as name:
        stage = Path(name)
        for file in files:
            if (folder / file).is_file():
                (stage / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, stage / file)
        download(stage)
        packed = [] if keep_archives else [stage / file for file in files if file.endswith(PACKED)]
        for path in sorted(stage.rglob("*")):
            target = folder / path.relative_to(stage)
            if path.is_file() and path not in packed and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)


def _absent_error(
    name: str, folder: Path, place: Path, missing: Sequence[str], archives: Sequence[str], error: Exception
) -> UsageError:
    """Return the error that files are missing and could not be downloaded."""
    reason = " ".join(str(getattr(error, "reason", error)).split())
    cifar = name in ("cifar10", "cifar100")
    packed = f"or {archives[0]} into {folder}" if cifar else "packed (.gz) or not"
    return UsageError(
        f"dataset={name}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in {place}, and could not be "
        f"downloaded ({reason}). Put {'that file' if len(missing) == 1 else 'those files'} into {place} ({packed}), "
        f"name the folder that holds {place.relative_to(folder)} with data_dir=... or CLRUN_DATA_DIR, or use "
        f"dataset=digits, which needs no files."
    )


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; where the block fails, remove the folders that were made and are empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


# ---------------------------------------------------------------- patches


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Give all sockets of the process a timeout meanwhile: torchvision sets none, and takes none as an argument."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
