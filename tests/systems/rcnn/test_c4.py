"""Mask R-CNN without a pyramid."""

import copy

import pytest
import torch
from torchvision.models import resnet50
from torchvision.models.resnet import ResNet

from maskwright.layers.roi import Rois
from maskwright.systems import SYSTEMS
from maskwright.weights import load_backbone, load_part
from tests.contract.test_contract import batch_of, objects, total
from tests.parity.test_torchvision import randomize

ROIS = Rois(torch.tensor([[8.0, 8, 90, 100], [30, 20, 60, 120]]), torch.zeros(2, dtype=torch.int64))


def test_stage_and_map_are_those_of_torchvisions_resnet(tmp_path):
    theirs = resnet50(weights=None).eval()
    randomize(theirs)
    torch.save(theirs.state_dict(), tmp_path / "r50.pth")
    system = SYSTEMS["mask-rcnn-r50-c4"](num_classes=3).eval()
    load_backbone(system.backbone.network, "resnet50", str(tmp_path / "r50.pth"))
    stage = system.box_head.staged.stage
    load_part(stage, "resnet50", stage.sources, str(tmp_path / "r50.pth"))
    pixels = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = system.backbone(pixels)
        stem = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(pixels))))
        expected = theirs.layer3(theirs.layer2(theirs.layer1(stem)))
        assert torch.allclose(ours[16], expected, atol=1e-4)
        pooled = system.box_head.staged.pool(ours, ROIS)
        assert pooled.shape == (2, 1024, 14, 14)
        seen = system.box_head.staged(ours, ROIS)
        assert seen.shape == (2, 2048, 7, 7)
        assert torch.allclose(seen, theirs.layer4(pooled), atol=1e-3)
        classes, deltas = system.box_head(ours, ROIS)
        masks = system.instance_heads["mask"](ours, ROIS, torch.tensor([0, 2]))
    assert (classes.shape, deltas.shape, masks.shape) == ((2, 4), (2, 3, 4), (2, 14, 14))


def test_fifteen_anchors_of_detectron2_in_its_order():
    system = SYSTEMS["mask-rcnn-r50-c4"](num_classes=1)
    cell = system.rpn.anchors.shapes[16]
    assert cell.shape == (15, 4)
    assert torch.allclose(cell[0], torch.tensor([-22.627, -11.314, 22.627, 11.314]), atol=1e-3)
    areas = (cell[:, 2:] - cell[:, :2]).prod(dim=1)
    assert torch.allclose(areas, torch.tensor([32.0, 64, 128, 256, 512]).repeat_interleave(3) ** 2, rtol=1e-4)


def test_box_and_mask_share_one_stage():
    torch.manual_seed(0)
    system = SYSTEMS["mask-rcnn-c4-small"](num_classes=3)
    assert not any("instance_heads" in name and "stage" in name for name in system.state_dict())
    with torch.no_grad():
        for parameter in system.parameters():  # residual branches start at zero and send no gradient in the first step
            parameter.add_(0.01 * torch.randn_like(parameter))
    batch, targets = batch_of(system, [(64, 96)]), [objects((64, 96), 3)]
    stage = system.box_head.staged.stage
    for term in ("class", "mask"):
        system.zero_grad(set_to_none=True)
        total({term: system.loss(batch, targets)[term]}).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.parameters() if p.ndim > 1), term
    copied = copy.deepcopy(system)  # as the moving average is
    assert copied.instance_heads["mask"].shared[0] is copied.box_head.staged
    assert copied.box_head.staged is not system.box_head.staged


@pytest.mark.slow
def test_the_dilated_body_is_that_of_a_resnet_with_every_block_dilated(tmp_path):
    theirs: ResNet = resnet50(weights=None, replace_stride_with_dilation=[False, False, True]).eval()
    randomize(theirs)
    theirs.layer4[0].conv2.dilation, theirs.layer4[0].conv2.padding = (2, 2), (2, 2)
    torch.save(theirs.state_dict(), tmp_path / "r50.pth")
    system = SYSTEMS["mask-rcnn-r50-dc5"](num_classes=1).eval()
    load_backbone(system.backbone.network, "resnet50", str(tmp_path / "r50.pth"))
    pixels = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        stem = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(pixels))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(stem))))
        found = system.backbone(pixels)[16]
    assert found.shape == (1, 2048, 6, 8)
    assert (found - expected).norm() <= 1e-4 * expected.norm()
