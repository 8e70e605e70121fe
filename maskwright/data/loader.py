"""Batches: prepared samples, padded together, in an order that depends on the seed and the epoch alone."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch.utils import data as torch_data
from torch.utils.data import DataLoader, Sampler

from maskwright.data.copy_paste import paste_objects
from maskwright.data.proposals import Proposals
from maskwright.data.sample import InputSample
from maskwright.data.transforms import Transform, drop_unseen
from maskwright.formats.dataset import Dataset
from maskwright.structures import ImageBatch, InputSpec, Instances, PatchKind


@dataclass(frozen=True, eq=False)
class Batch:
    """What a loader yields: the images, their objects in the input frame, ids and file names."""

    images: ImageBatch
    targets: list[Instances]
    ids: list[int]
    names: list[str]
    weight: float = 1.0
    """0 where a batch has fewer images than parts, and this part shows one that belongs to another."""


@dataclass(frozen=True)
class Address:
    """Where a training image is found: it differs from epoch to epoch by its augmentation."""

    epoch: int
    index: int
    weight: float = 1.0


def key_of(seed: int, epoch: int, image_id: int) -> int:
    """A number for every random draw made for an image in an epoch, the same in every process."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{image_id}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def prepare(sample: InputSample, spec: InputSpec) -> tuple[torch.Tensor, Instances]:
    """Pixels (3, h, w) and instances of a sample in the input frame."""
    pixels = spec.to_pixels(sample.image, sample.input_size)
    return pixels, drop_unseen(sample.instances.resize((pixels.shape[1], pixels.shape[2])))


class Row(NamedTuple):
    """A prepared image, without the file's own pixels: many rows wait for their batch.

    Its id and name, size and proposals before resizing, pixels (3, h, w), objects in the input frame, key for random draws, and
    weight. Patches have a kind.
    """

    id: int
    name: str
    original_size: tuple[int, int]
    proposals: Instances | None
    pixels: torch.Tensor
    instances: Instances
    key: int
    weight: float
    kind: PatchKind | None = None


class TrainingImages(torch_data.Dataset[Row | str]):
    """Augmented samples of a data set; an image that cannot be read gives its message.

    Args:
        proposals: for detectors that consume them.
        with_masks: whether proposals bring their masks, which only predictions need.
        copy_paste: probability that objects of another image are pasted into one.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        spec: InputSpec,
        transform: Transform,
        batch_size: int,
        seed: int,
        proposals: Proposals | None = None,
        with_masks: bool = False,
        copy_paste: float = 0.0,
    ) -> None:
        self.dataset = dataset
        self.copy_paste = copy_paste
        self.proposals = proposals
        self.with_masks = with_masks
        self.spec = spec
        self.transform = transform
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, address: Address) -> Row | str:
        key = key_of(self.seed, address.epoch, int(self.dataset.image_ids[address.index]))
        generator = torch.Generator().manual_seed(key)
        try:  # a worker's exceptions reach the user wrapped in its traceback; a message does not
            sample = self._sample(address.index, generator)
            pixels, instances = prepare(sample, self.spec)
            if self.copy_paste and float(torch.rand((), generator=generator)) < self.copy_paste:
                other = prepare(self._sample(self._another(address.index, generator), generator), self.spec)
                pixels, instances = paste_objects((pixels, instances), other, generator)
        except ValueError as error:
            return str(error)
        size = sample.instances.image_size
        return Row(sample.id, sample.name, size, sample.proposals, pixels, instances, key, address.weight)

    def _sample(self, index: int, generator: torch.Generator) -> InputSample:
        """An image as it is shown."""
        read = self.dataset.read(index, self.spec.intensity)
        given = None
        if self.proposals is not None:
            given = self.proposals.of(read.id, read.instances.image_size, with_masks=self.with_masks)
        return self.transform(InputSample.of(read, given), generator)

    def _another(self, index: int, generator: torch.Generator) -> int:
        """Any image but this one, unless there is no other."""
        count = len(self.dataset)
        return (index + 1 + int(torch.randint(max(1, count - 1), (), generator=generator))) % count

    def collate(self, answers: Sequence[Row | str]) -> Batch | str:
        """Pad the rows of a batch; or the message of one that could not be read."""
        return padded_together(answers, self.spec)

    def batches(self, epoch: int) -> list[list[int]]:
        """Indices of the batches of an epoch: shuffled, landscape with landscape and portrait with portrait.

        Every image comes exactly once; the last, incomplete batches of both kinds are joined.
        """
        generator = torch.Generator().manual_seed(key_of(self.seed, epoch, -1))
        waiting: dict[bool, list[int]] = {True: [], False: []}
        batches: list[list[int]] = []
        for index in torch.randperm(len(self.dataset), generator=generator).tolist():
            height, width = self.dataset.image_size(index)
            group = waiting[width > height]
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        rest = waiting[True] + waiting[False]
        batches += [rest[i : i + self.batch_size] for i in range(0, len(rest), self.batch_size)]
        order = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[i] for i in order]


def padded_together(answers: Sequence[Row | str], spec: InputSpec) -> Batch | str:
    """The rows of a batch as one; or the message of one that could not be read."""
    for answer in answers:
        if isinstance(answer, str):
            return answer
    rows = [answer for answer in answers if not isinstance(answer, str)]
    proposals = [row.proposals for row in rows if row.proposals is not None]
    images = ImageBatch.collate(
        [row.pixels for row in rows],
        original_sizes=[row.original_size for row in rows],
        size_divisor=spec.size_divisor,
        keys=[row.key for row in rows],
        proposals=proposals or None,
    )
    return Batch(
        images,
        [row.instances for row in rows],
        [row.id for row in rows],
        [row.name for row in rows],
        rows[0].weight,
    )


@dataclass(frozen=True)
class Share:
    """What one of several processes computes of every batch: its micro-batches, one after the other."""

    micro_batches: int = 1
    rank: int = 0
    processes: int = 1

    def of(self, epoch: int, batch: Sequence[int]) -> Iterator[list[Address]]:
        """The parts of a batch that fall to this process; where there are too few images, one of another at weight 0."""
        count = self.micro_batches * self.processes
        for micro in range(self.micro_batches):
            part = micro * self.processes + self.rank
            indices = batch[len(batch) * part // count : len(batch) * (part + 1) // count]
            yield [Address(epoch, index) for index in indices] or [Address(epoch, batch[0], weight=0.0)]


class TrainingSource(Protocol):
    """What training draws its batches from: whole images, or patches of them."""

    dataset: Dataset

    def __len__(self) -> int: ...
    def __getitem__(self, address: Address) -> Row | str: ...
    def batches(self, epoch: int) -> list[list[int]]:
        """Indices of each batch of an epoch; every epoch has as many."""

    def collate(self, answers: Sequence[Row | str]) -> Batch | str:
        """One batch of rows, or the message of one that could not be read."""


class _Addresses(Sampler[list[Address]]):
    """One process' share of the batches from a given one on, without end; which images form a batch depends on no process."""

    def __init__(self, source: TrainingSource, *, share: Share, start: int) -> None:
        self.source = source
        self.share = share
        self.start = start

    def __iter__(self) -> Iterator[list[Address]]:
        epoch, skip = divmod(self.start, len(self.source.batches(0)))
        while True:
            for batch in self.source.batches(epoch)[skip:]:
                yield from self.share.of(epoch, batch)
            epoch, skip = epoch + 1, 0


def training_batches(source: TrainingSource, *, workers: int, share: Share = Share(), start: int = 0) -> Iterator[Batch]:
    """One process' micro-batches without end, beginning with those of the run's `start`-th batch."""
    if len(source) == 0:
        raise ValueError(f"{source.dataset.path}: there are no images to train on")
    loader: DataLoader[Row | str] = DataLoader(
        source,  # type: ignore[arg-type]
        batch_sampler=_Addresses(source, share=share, start=start),
        num_workers=workers,
        collate_fn=source.collate,
    )
    return map(_or_raise, iter(loader))


def _or_raise(batch: Batch | str) -> Batch:
    if isinstance(batch, str):
        raise ValueError(batch)
    return batch


def evaluation_batches(
    dataset: Dataset, *, spec: InputSpec, batch_size: int, proposals: Proposals | None = None
) -> Iterator[Batch]:
    """Every image once, in order, as it is; images of the same input size share a batch."""
    still = TrainingImages(
        dataset,
        spec=spec,
        transform=lambda sample, _: sample,
        batch_size=batch_size,
        seed=0,
        proposals=proposals,
        with_masks=True,
    )
    group: list[int] = []
    for index in range(len(dataset)):
        size = spec.resize.size(dataset.image_size(index))
        if group and (len(group) == batch_size or size != spec.resize.size(dataset.image_size(group[0]))):
            yield _or_raise(still.collate([still[Address(0, i)] for i in group]))
            group = []
        group.append(index)
    if group:
        yield _or_raise(still.collate([still[Address(0, i)] for i in group]))
