"""A training step of Mask R-CNN R50-FPN: ours and torchvision's, the same weights, batch and autocast.

python -m benchmarks.training
"""

from pathlib import Path

import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from benchmarks.measure import report, seconds
from benchmarks.peers import TorchvisionMaskRCNN
from maskwright.data.loader import evaluation_batches
from maskwright.formats.catalog import open_split
from maskwright.runs import choose_precision
from maskwright.runs.checkpoints import build_system
from maskwright.structures import InputSpec, ResizeRule
from maskwright.systems import System
from maskwright.weights.torchvision import convert

DATA = Path(__file__).parent.parent / "examples" / "nuclei"
FROZEN = ("conv1.", "bn1.", "layer1.")


def stepper(system: System, batch: object, precision: str) -> object:
    """A function that makes one step of SGD."""
    for name, parameter in system.named_parameters():
        parameter.requires_grad_(not any(part in name for part in FROZEN))
    optimizer = torch.optim.SGD([p for p in system.parameters() if p.requires_grad], lr=1e-5, momentum=0.9)
    autocast = choose_precision(precision, "cpu").autocast

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            losses = system.loss(batch.images, batch.targets)
        sum(loss.total / loss.count.clamp(min=1) for loss in losses.values()).backward()
        optimizer.step()

    return step


def main() -> None:
    """Time both in float32 and under bf16 autocast."""
    torch.manual_seed(0)
    model = MaskRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), 2)
    spec = InputSpec(resize=ResizeRule(512, 1024, rounding="floor", antialias=False))
    theirs = TorchvisionMaskRCNN(model, spec).to(memory_format=torch.channels_last)
    ours = build_system("mask-rcnn-r50-fpn-torchvision", {"num_classes": 1})
    ours.load_state_dict(convert(model.state_dict()).tensors)
    ours.to(memory_format=torch.channels_last)
    train = open_split(DATA, "train")
    square = [i for i in range(len(train)) if train.image_size(i)[0] == train.image_size(i)[1]]
    batch = next(evaluation_batches(train.subset(square), spec=spec, batch_size=2))
    assert batch.images.pixels.shape == (2, 3, 512, 512)
    rows = [["", "torchvision, s", "maskwright, s", "times faster"]]
    for precision in ("float32", "bfloat16"):
        times = seconds({"theirs": stepper(theirs, batch, precision), "ours": stepper(ours, batch, precision)}, repeats=5)
        rows.append([precision, f"{times['theirs']:.2f}", f"{times['ours']:.2f}", f"{times['theirs'] / times['ours']:.2f}"])
    objects = " and ".join(str(len(t)) for t in batch.targets)
    notes = f"Two images of 512×512 px with {objects} nuclei; loss, backward pass and SGD; torchvision's parts on both sides."
    report("training", "python -m benchmarks.training", rows, notes)


if __name__ == "__main__":
    main()
