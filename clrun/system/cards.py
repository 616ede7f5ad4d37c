"""The NVIDIA cards that this process may use, as PyTorch tells of them."""

import gc


class Cards:
    """What clrun asks of CUDA and tells it. A test, which has no card, hands in another object with these functions."""

    def count(self) -> int:
        """Return how many cards there are; 0 where CUDA cannot be used."""
        import torch  # late: it takes seconds

        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    def name(self, index: int) -> str:
        """Return the model of a card, such as 'NVIDIA H100'."""
        import torch

        return torch.cuda.get_device_name(index)

    def free_bytes(self, index: int) -> int:
        """Return how much of a card's memory no process uses."""
        import torch

        return torch.cuda.mem_get_info(index)[0]

    def choose(self, index: int) -> None:
        """Let "cuda" mean this card from now on, in this process."""
        import torch

        torch.cuda.set_device(index)

    def forget_peak(self, index: int | None) -> None:
        """Let `peak_bytes` begin anew. index: of a card; None: the one that "cuda" means."""
        import torch

        if torch.cuda.is_initialized():  # else nothing was allocated yet
            torch.cuda.reset_peak_memory_stats(index)

    def peak_bytes(self, index: int | None) -> int:
        """Return the most bytes of a card that were allocated at once since `forget_peak`, by this process."""
        import torch

        return torch.cuda.max_memory_allocated(index)

    def release(self) -> None:
        """Give back the memory that this process no longer uses. What an exception has left behind may refer to itself
        in a circle, which Python removes when it is asked to."""
        import torch

        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


CARDS = Cards()
