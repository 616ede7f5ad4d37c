"""The data of a measurement: MNIST whole or cut, pictures that are drawn, and each as one file for the floor."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.workloads import Workload, settings_of
from clrun.data.datasets import IDX_FILES, data_folder, load

TINY = {
    "mnist": (1400, 100),
    "pictures": (60, 20),
}  # with --quick, and before a measurement


class Shelf:
    """Makes each data set once, below one folder. quick: MNIST is drawn too, and everything is tiny."""

    def __init__(self, folder: Path, data_dir: str | None, quick: bool):
        self.folder, self.data_dir, self.quick = folder, data_dir, quick

    def places(self, workload: Workload, tiny: bool = False) -> dict[str, str]:
        """The overrides that say where clrun finds a workload's data."""
        size = TINY.get(workload.kind) if tiny or self.quick else workload.pictures
        if workload.kind == "digits":
            return {"epochs": "2"} if tiny or self.quick else {}
        if workload.kind == "pictures":
            return {"dataset.root": str(self.drawn_pictures(size)), "data_dir": str(self.made("cache"))}
        if tiny or self.quick:
            return {"data_dir": str(self.drawn_digits(size))}
        return {"data_dir": str(self.mnist(workload.pictures))}

    def file(self, workload: Workload, places: Mapping[str, str]) -> tuple[str, list[str]]:
        """The data as one .npz, and the names of the classes."""
        settings = settings_of(workload, places)
        images = load(settings)
        path = self.folder / f"{images.fingerprint}.npz"
        if not path.exists():
            np.savez(path, x=images.x.numpy(), y=images.y.numpy(), train=images.train)
        return str(path), list(images.classes)

    def made(self, name: str) -> Path:
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name

    def mnist(self, pictures: tuple[int, int] | None) -> Path:
        """The user's MNIST, or its first pictures."""
        named = self.data_dir or os.environ.get("CLRUN_DATA_DIR")
        whole = data_folder(named)
        load({"dataset": "mnist", "dataset.pad": 0, "data_dir": named})  # downloads what is missing
        return whole if pictures is None else self.written(f"mnist-{pictures[0]}-{pictures[1]}", cut(whole, pictures))

    def drawn_digits(self, pictures: tuple[int, int]) -> Path:
        """Noisy templates in the files of MNIST."""
        parts = {}
        for part, n, seed in zip(("train", "t10k"), pictures, (1, 2), strict=True):
            x, y = drawn(n, (28, 28), seed)
            parts |= {f"{part}-images-idx3-ubyte": x, f"{part}-labels-idx1-ubyte": y}
        return self.written(f"drawn-{pictures[0]}-{pictures[1]}", parts)

    def drawn_pictures(self, pictures: tuple[int, int]) -> Path:
        """Noisy templates as a folder of pictures, train/<class>/ and test/<class>/."""
        from PIL import Image

        root = self.folder / f"pictures-{pictures[0]}-{pictures[1]}"
        for part, n, seed in zip(("train", "test"), pictures, (1, 2), strict=True):
            x, y = (None, None) if (root / part).exists() else drawn(n, (32, 32, 3), seed)
            for i in range(0 if x is None else n):
                place = root / part / str(y[i])
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(x[i]).save(place / f"{i}.png")
        return root

    def written(self, name: str, parts: Mapping[str, np.ndarray]) -> Path:
        """A folder in torchvision's layout with these files of MNIST."""
        raw = self.folder / name / "MNIST" / "raw"
        if not raw.exists():
            raw.mkdir(parents=True)
            for file, values in parts.items():
                (raw / file).write_bytes(idx(IDX_FILES[file], values))
        return self.folder / name


def drawn(n: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """x (n, *shape) uint8, y (n,) uint8: ten coarse templates, each pixel disturbed; classes in turn."""
    templates = np.random.default_rng(0).integers(0, 256, (10, *(s // 4 if s > 3 else s for s in shape)))
    large = templates.repeat(4, 1).repeat(4, 2)
    y = (np.arange(n) % 10).astype(np.uint8)
    x = large[y] * 0.5 + np.random.default_rng(seed).normal(64, 60, (n, *shape))
    return x.clip(0, 255).astype(np.uint8), y


def cut(folder: Path, pictures: tuple[int, int]) -> dict[str, np.ndarray]:
    """The first pictures of MNIST's training and test files."""
    parts: dict[str, Any] = {}
    for file, magic in IDX_FILES.items():
        header = 4 * (1 + magic % 256)
        data = np.fromfile(folder / "MNIST" / "raw" / file, np.uint8)
        shape = data[4:header].view(">u4").tolist()
        parts[file] = data[header:].reshape(shape)[: pictures[0 if file.startswith("train") else 1]]
    return parts


def idx(magic: int, values: np.ndarray) -> bytes:
    """The bytes of an IDX file (http://yann.lecun.com/exdb/mnist)."""
    return np.array([magic, *values.shape], ">u4").tobytes() + values.tobytes()
