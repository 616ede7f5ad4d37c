"""Digests of files, each computed once: again only where a file's size, times or inode have changed."""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Bytes of a digest.
WIDTH = 16

# Files that a thread reads at a time.
CHUNK = 256

# Nanoseconds: a file that has changed so shortly before it was read may change again without another time of change.
SETTLED = 2 * 10**9

# What reading a damaged .npz file may raise.
DAMAGE_ERRORS = (OSError, EOFError, ValueError, KeyError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)


class FileState(NamedTuple):
    """What changes with a file's content: its size, the times of its changes (in nanoseconds), and its inode."""

    bytes: int
    modified: int
    changed: int
    inode: int


def digest_of(data: bytes) -> bytes:
    """Return the digest of a file's bytes, WIDTH bytes."""
    return hashlib.blake2b(data, digest_size=WIDTH).digest()


class Digests(NamedTuple):
    """The digests of files, and what a cache file is to remember of them."""

    rows: np.ndarray  # (N, WIDTH) uint8, zeros for a file that cannot be read
    news: dict[str, np.ndarray]  # the arrays of the cache file; empty where it holds them already

    def remember(self, cache: Path) -> None:
        """Bring the cache file up to date."""
        if self.news:
            write_arrays(cache, "image_folder", **self.news)


def digests(paths: Sequence[str], states: Sequence[FileState], cache: Path) -> Digests:
    """Return the digests of files: from the cache file where they have not changed, otherwise from their bytes."""
    names = np.frombuffer(os.fsencode("\0".join(paths)), np.uint8)
    now = np.array(states, np.int64).reshape(-1, 4)
    found = _remembered(read_arrays(cache), names, now, paths)
    missing = np.flatnonzero(~found.any(1)).tolist()
    if not missing:
        return Digests(found, {})
    before = time.time_ns()
    found[missing] = _hashed([paths[row] for row in missing])
    settled = (now[:, 1:3].max(1) < before - SETTLED) & found.any(1)
    fresh = np.zeros(len(paths), bool)
    fresh[missing] = True
    kept = np.where((fresh & ~settled)[:, None], -1, now)
    return Digests(found, {"names": names, "states": kept, "digests": found})


def _remembered(
    known: Mapping[str, np.ndarray] | None, names: np.ndarray, now: np.ndarray, paths: Sequence[str]
) -> np.ndarray:
    """Return the digests (N, WIDTH) of the files that are as they were; zeros for the others."""
    found = np.zeros((len(paths), WIDTH), np.uint8)
    if known is None or not {"names", "states", "digests"} <= set(known):
        return found
    before = os.fsdecode(known["names"].tobytes()).split("\0")
    if known["states"].shape != (len(before), 4) or known["digests"].shape != (len(before), WIDTH):
        return found
    if np.array_equal(known["names"], names):
        rows, theirs = np.arange(len(paths)), np.arange(len(paths))
    else:
        place = {path: row for row, path in enumerate(before)}
        pairs = [(row, place[path]) for row, path in enumerate(paths) if path in place]
        rows, theirs = np.array(pairs, np.int64).reshape(-1, 2).T
    same = (known["states"][theirs] == now[rows]).all(1)
    found[rows[same]] = known["digests"][theirs[same]]
    return found


def _hashed(paths: Sequence[str]) -> np.ndarray:
    """Return the digests (N, WIDTH) of files that are read by threads; zeros for one that cannot be read."""

    def hashed(start: int) -> bytes:
        return b"".join(map(_digest_or_zeros, paths[start : start + CHUNK]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        joined = b"".join(pool.map(hashed, range(0, len(paths), CHUNK)))
    return np.frombuffer(joined, np.uint8).reshape(-1, WIDTH)


def _digest_or_zeros(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return digest_of(file.read())
    except OSError:  # decoding says why
        return bytes(WIDTH)


# ---------------------------------------------------------------- cache files


def read_arrays(
    path: Path, dataset: str = "image_folder", again: str = "reading the pictures again"
) -> dict[str, np.ndarray] | None:
    """Return the arrays in a cache file; None where there is none or it is damaged (every .npz carries checksums).

    dataset: which reader says so. again: what it does then.
    """
    if not os.path.isfile(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:  # another process has removed it since
        return None
    except DAMAGE_ERRORS as error:
        print(f"{dataset}: {path} is torn ({error}): {again}", file=sys.stderr)
        return None


def write_arrays(path: Path, dataset: str = "image_folder", **arrays: np.ndarray) -> bool:
    """Write a cache file under another name, then rename it, and return whether it is there; print a line where the
    folder cannot be written.

    dataset: which reader prints it.
    """
    part = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the names of the arrays are given
        os.replace(part, path)
        return True
    except OSError as error:
        print(f"{dataset}: {path.parent} cannot be written ({error.strerror}): nothing cached", file=sys.stderr)
        return False
    finally:
        if os.path.exists(part):
            part.unlink()


def remove_files(paths: Sequence[Path]) -> None:
    """Remove cache files that are of no use any more; a file that cannot be removed is left and said."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            print(f"{path} cannot be removed ({error.strerror}): it is of no use any more", file=sys.stderr)
