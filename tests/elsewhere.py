"""A device that is not there: tensors on it have a shape and no values, those of the host are real. So a stack does on
it all that it does on a GPU, and what it keeps there is counted in bytes.

("lazy" is a type of device without a card, a driver or a stream, which FakeTensor and autograd know.)
"""

import weakref
from collections import Counter

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy:0")
VALUE_READERS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}
IN_PLACE_KERNELS = ("_fused_", "_foreach_")  # without a fake kernel


class Elsewhere(TorchDispatchMode):
    """While it is active, `held` is the number of bytes of the tensors on DEVICE, and `peak` the largest so far."""

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.live, self.held, self.peak, self.reads = {}, 0, 0, Counter()

    def forget_peak(self):
        self.peak = self.held

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = [v for v in tree_leaves((args, kwargs)) if isinstance(v, FakeTensor)]
        to = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        if not there and to != DEVICE.type:
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if to == "cpu" or name in VALUE_READERS:
            self.reads[name] += 1
            return self.on_the_host(name, there[0], kwargs.get("dtype"))
        if name.startswith(IN_PLACE_KERNELS):
            return None
        args, kwargs = tree_map(self.faked, (args, kwargs))
        with self.fake:
            out = func(*args, **kwargs)
        self.count(out)
        return out

    def faked(self, v):
        real = isinstance(v, torch.Tensor) and not isinstance(v, FakeTensor)
        return self.fake.from_tensor(v) if real else v

    def on_the_host(self, name, v, dtype):
        """What the host is told: zeros, and one row where a shape depends on values."""
        if name == "_local_scalar_dense":
            return torch.zeros((), dtype=v.dtype).item()
        if name == "equal":
            return True
        if name == "_to_copy":
            return torch.zeros(v.shape, dtype=dtype or v.dtype)
        with self.fake:
            out = torch.zeros(1, v.dim() or 1, dtype=torch.long, device=DEVICE)
        self.count(out)
        return out

    def count(self, tree):
        """Count the storages of tensors on DEVICE, each until it is gone."""
        for v in tree_leaves(tree):
            if isinstance(v, FakeTensor) and v.device.type == DEVICE.type:
                storage = v.untyped_storage()
                key = storage._cdata
                if key not in self.live:
                    self.live[key] = storage.nbytes()
                    self.held += storage.nbytes()
                    self.peak = max(self.peak, self.held)
                    weakref.finalize(storage, self.gone, key)

    def gone(self, key):
        self.held -= self.live.pop(key)

    def __enter__(self):
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)
