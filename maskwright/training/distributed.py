"""Several processes that train one model: torch.distributed under torchrun, one process for each device.

    torchrun --nproc-per-node 8 -m maskwright train SYSTEM --data DIR --out RUN

Every process computes its share of each batch. The terms of the loss carry their counts, which are added up over the
processes before anything is divided, so that the gradient is that of the whole batch in one process.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maskwright.runs import choose_device
from maskwright.structures import ImageBatch, Instances
from maskwright.systems import Loss, System


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and which of them this is."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes and speaks for all."""
        return self.rank == 0

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars added up over all processes; every process names the same ones."""
        if self.count == 1:
            return dict(values)
        names = sorted(values)
        stacked = torch.stack([values[name].detach().to(torch.float32) for name in names])
        dist.all_reduce(stacked)
        return dict(zip(names, stacked.unbind(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, in order of rank, to the first one; nothing to the others."""
        if self.count == 1:
            return [value]
        gathered = [None] * self.count if self.is_first else None
        dist.gather_object(value, gathered)
        return gathered or []

    def tell(self, value: Any) -> Any:
        """What the first process says, to all."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


class LossNetwork(nn.Module):
    """A system whose forward is its loss, which is what data parallel training wraps."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = cast(nn.Module, system)

    def forward(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """Loss terms by name."""
        return cast(System, self.system).loss(images, targets)


def parallel(system: System, processes: Processes, *, uses_all: bool) -> nn.Module:
    """The network to train: with several processes, gradients are averaged over them in the backward pass.

    Args:
        uses_all: whether every step reaches every trainable parameter.
    """
    network = LossNetwork(system)
    if processes.count == 1:
        return network
    return DistributedDataParallel(network, broadcast_buffers=False, find_unused_parameters=not uses_all)


def without_exchange(network: nn.Module) -> AbstractContextManager[None]:
    """Context for a backward pass whose gradients stay in this process until a later one."""
    if isinstance(network, DistributedDataParallel):
        return cast(AbstractContextManager[None], network.no_sync())
    return nullcontext()


def own_device(wanted: str) -> str:
    """The device asked for; with several processes on a machine's GPUs, each takes the one with its number.

    Raises:
        ValueError: it does not exist here, or there are fewer GPUs than processes.
    """
    if _num_started() > 1 and wanted.startswith("cuda:"):
        raise ValueError(f"device {wanted!r}: each of several processes takes a GPU of its own: give --device cuda")
    if _num_started() > 1 and wanted in ("auto", "cuda") and torch.cuda.is_available():
        own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= there:
            raise ValueError(f"there are more processes than GPUs, {there}: lower --nproc-per-node, or give --device cpu")
        torch.cuda.set_device(own)
        wanted = f"cuda:{own}"
    return choose_device(wanted)


def _num_started() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Meet the other processes torchrun has started, if it has."""
    if _num_started() == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
