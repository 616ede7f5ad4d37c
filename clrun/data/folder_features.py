"""Features of a frozen network in place of the pictures of a folder, which are never all in memory at once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clrun.data.class_folders import Picture
from clrun.data.decoding import Deep, Whites
from clrun.data.features import AT_ONCE, PART, Extractor, Part, extracted, features_of, stacked
from clrun.data.folder_decoding import Decoded, broken_error, pixels_or_reason, whites_of_training
from clrun.data.folder_division import Division, digest_of_pictures


class FolderFeatures(NamedTuple):
    """The pictures of a folder, of which a frozen network is to make features. What is kept in the cache has the same
    names as for decoded pictures."""

    parts: Division
    pictures: Sequence[Picture]
    marks: np.ndarray  # (N, WIDTH) uint8
    folder: Path  # of the cache
    stated: str
    size: int
    white: float | None
    skip_broken: bool

    def read(self, extractor: Extractor, at_once: int = PART) -> Decoded:
        """Return the features of all pictures that are not broken. Raise UsageError for broken ones.

        Those of more than 8 bits are known when the brightest training picture is, and have a cache file of their own.
        at_once: as of `extracted`.
        """
        text = f"{self.stated} {self.parts.train} {self.parts.test_fraction}"
        name = digest_of_pictures(text, self.marks, self.parts.cells, 10)
        rows = np.arange(len(self.pictures))
        x, others, pillow_version = self.of_rows(rows, extractor, self.folder / f"{name}.npz", None, at_once)
        broken = {row: other for row, other in others.items() if isinstance(other, str)}
        deep = {row: other for row, other in others.items() if isinstance(other, Deep)}
        kept = np.ones(len(rows), bool)
        kept[list(broken)] = False
        whites = Whites(0.0, 0.0)
        if deep:
            whites = whites_of_training(self.parts, kept, deep, self.white)
            again, _, _ = self.of_rows(
                np.array(sorted(deep)), extractor, self.folder / f"{name}-deep.npz", whites, at_once
            )
            x = x if x.shape[1] else np.zeros((len(rows), again.shape[1]), np.float32)
            x[sorted(deep)] = again
        return Decoded(x if not broken else x[kept], broken, len(deep), whites, pillow_version)

    def of_rows(
        self, rows: np.ndarray, extractor: Extractor, path: Path, whites: Whites | None, at_once: int
    ) -> tuple[np.ndarray, dict[int, Deep | str], str]:
        """Return the features (n, F) of the pictures at some rows, zeros for those that have none yet, what is to be
        said of these, as `decode_all` does, and the version of Pillow. path: of the cache file."""

        def make(start: int, stop: int, advance: Callable[[int], object]) -> Part:
            return self.part(rows[start:stop], extractor, whites, advance)

        def join(abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
            joined = {row: other for about in abouts for row, other in about["others"].items()}
            self.refuse_broken(joined)
            return {"others": joined, "pillow": abouts[-1]["pillow"]}

        of_what = f" of {self.parts.layout.root} at {self.size} x {self.size} by {extractor.about}"
        whole = extracted(path, len(rows), make, of_what, join, at_once)
        found: dict[str, Any] = whole.about["others"]
        self.refuse_broken(found)
        others = {int(row): other if isinstance(other, str) else Deep(*other) for row, other in found.items()}
        return whole.x, others, whole.about["pillow"]

    def refuse_broken(self, others: Mapping[str, Any]) -> None:
        """Raise UsageError for pictures that are broken, row -> reason, unless they are to be left out."""
        broken = {self.pictures[int(row)].path: other for row, other in others.items() if isinstance(other, str)}
        if broken and not self.skip_broken:
            raise broken_error(broken)

    def part(
        self, rows: np.ndarray, extractor: Extractor, whites: Whites | None, advance: Callable[[int], object]
    ) -> Part:
        """Return the features of some rows, and row -> what is to be said of a picture that has none yet."""
        features: list[np.ndarray] = []
        others: dict[str, Deep | str] = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of large pictures and damaged metadata
            for some, found in self.decoded(rows, whites):
                whole = [isinstance(pixels, np.ndarray) for pixels in found]
                pairs = zip(some.tolist(), found, strict=True)
                others |= {str(row): other for row, other in pairs if not isinstance(other, np.ndarray)}
                of_some = np.zeros((len(some), 0), np.float32)
                if any(whole):
                    names = [self.pictures[row].path for row in some[whole].tolist()]
                    pixels = np.stack([one for one in found if isinstance(one, np.ndarray)])
                    made = features_of(extractor, pixels, names.__getitem__)
                    of_some = np.zeros((len(some), made.shape[1]), np.float32)
                    of_some[whole] = made
                features.append(of_some)
                advance(len(some))
        return Part(stacked(features), {"others": others, "pillow": version("pillow")})

    def decoded(
        self,
        rows: np.ndarray,
        whites: Whites | None,
        threads: int | None = os.cpu_count(),
        at_once: int = AT_ONCE,
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray | Deep | str]]]:
        """Yield some rows at a time with their pixels, or what `pixels_or_reason` says of them. Threads decode the
        next ones meanwhile, and no more, so that memory holds few pictures."""
        from PIL import Image

        Image.init()  # once, not in every thread
        pool = ThreadPoolExecutor(threads)

        def submit(start: int) -> list[Any]:
            ahead = ((self.pictures[row].path, self.marks[row].tobytes()) for row in rows[start : start + at_once])
            return [pool.submit(pixels_or_reason, path, mark, self.size, whites) for path, mark in ahead]

        try:
            ahead = submit(0)
            for start in range(0, len(rows), at_once):
                now, ahead = ahead, submit(start + at_once)
                yield rows[start : start + at_once], [future.result() for future in now]
        finally:
            pool.shutdown(cancel_futures=True)
