"""Training on one device, or under torchrun on several, a process for each."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from convseg.network import ConvSeg
from dataengine.devices import device_names, in_bfloat16, is_out_of_memory
from dataengine.errors import TrainingError, UsageError

T = TypeVar("T")

PRECISIONS = {
    "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32,
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32,
}  # fmt: skip
PATIENCE = datetime.timedelta(hours=12)  # that processes wait while the first one validates


@dataclass(frozen=True)
class Team:
    """The processes that train together.

    Attributes:
        device: torch's name of this process's device.
        rank, ranks: of this process, and their number.
    """

    device: str
    rank: int = 0
    ranks: int = 1

    @classmethod
    def join(cls, setting: str) -> Team:
        """Take the device that `--device` names, under torchrun this process's share of them.

        Raises:
            UsageError: there is no such device.
        """
        names = device_names(setting)
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if ranks < 2:
            return cls(names[0])
        rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        on_gpus = names[0] != "cpu"
        if on_gpus and local >= len(names):
            found = f"torchrun started process {local + 1} here, but --device {setting} has {len(names)}"
            raise UsageError(found, hint=f"Start {len(names)}: torchrun --nproc-per-node {len(names)} train.py …")
        device = names[local] if on_gpus else "cpu"
        if on_gpus:
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if on_gpus else "gloo", timeout=PATIENCE)
        return cls(device, rank, ranks)

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def shared(self, network: ConvSeg) -> nn.Module:
        """The network, whose gradients become the mean over all processes."""
        if self.ranks < 2:
            return network
        return cast(nn.Module, DistributedDataParallel(network, device_ids=[self.device] if self.on_gpu else None))

    def highest(self, number: int) -> int:
        """The highest of all processes' numbers."""
        if self.ranks < 2:
            return number
        told = torch.tensor(number, device=self.device)
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        return int(told)

    def agreed(self, make: Callable[[], T]) -> T:
        """What the leading process makes, for all."""
        if self.ranks < 2:
            return make()
        told = [make() if self.leads else None]
        distributed.broadcast_object_list(told, device=torch.device(self.device))
        return cast(T, told[0])

    def wait(self) -> None:
        """Wait for all processes to be here."""
        if self.ranks > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Let the others go."""
        if self.ranks > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


def number_type(device: str, precision: str) -> torch.dtype:
    """What matrix products are computed in.

    Args:
        precision: auto (bfloat16 on GPUs made for it, else float32) or one of `PRECISIONS`.

    Raises:
        UsageError: there is no such precision.
    """
    if precision == "auto":
        return torch.bfloat16 if in_bfloat16(device, "auto") else torch.float32
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: no such precision", hint=f"There are auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


@contextmanager
def memory_told(device: str, hint: str) -> Iterator[None]:
    """Where memory ends, one line with what to do.

    Raises:
        TrainingError: it has ended.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory on {device}", hint=hint, reason="out_of_memory") from None


def computing_in(device: str, dtype: torch.dtype) -> torch.autocast:
    """The context in which a network computes in `dtype` where that is enough; weights keep their own."""
    kind = device.partition(":")[0]
    return torch.autocast(kind, dtype if dtype != torch.float32 else None, enabled=dtype != torch.float32)
