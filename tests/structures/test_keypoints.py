"""Keypoints in cells and back, and their similarity, beside the numbers of the field and torchvision."""

import pytest
import torch
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypoints_to_heatmap

from maskwright.structures import COCO_PERSON, KeypointSchema
from maskwright.structures.keypoints import from_heatmaps, hide, similarity, to_cells

ROI = torch.tensor([[10.0, 20, 66, 132]])


def test_cells_by_hand():
    points = [(10, 20, 2), (66, 132, 1), (65.99, 131.9, 2), (38, 76, 2), (9, 30, 2), (38, 76, 0), (66.1, 100, 2)]
    cells, inside = to_cells(torch.tensor([points]), ROI, side=56)
    assert inside.tolist() == [[True, True, True, True, False, False, False]]
    assert cells[0, :4].tolist() == [0, 3135, 3135, 1596]
    _, inside = to_cells(torch.tensor([points]), torch.tensor([[10.0, 20, 10, 132]]), side=56)
    assert not inside[0, 1:].any()  # nothing lies in a box without width but what lies on its edge


def test_cells_equal_torchvisions():
    generator = torch.Generator().manual_seed(0)
    corner = 50 * torch.rand(40, 2, generator=generator)
    boxes = torch.cat([corner, corner + 1 + 90 * torch.rand(40, 2, generator=generator)], dim=1)
    points = torch.cat([150 * torch.rand(40, 17, 2, generator=generator), torch.ones(40, 17, 1)], dim=2)
    points[torch.rand(40, 17, generator=generator) < 0.3] = 0
    cells, inside = to_cells(points, boxes, side=56)
    expected, valid = keypoints_to_heatmap(points, boxes, 56)
    assert torch.equal(inside, valid.bool())
    assert torch.equal(cells, expected * valid)
    assert 30 < int(inside.sum()) < 600


@pytest.mark.parametrize(("roi", "expected"), [((10, 20, 66, 132), (38.5, 76.5)), ((10, 20, 66.4, 132.4), (39.1895, 77.1947))])
def test_peaks_by_hand(roi, expected):
    logits = torch.full((1, 1, 56, 56), -10.0)
    logits[0, 0, 28, 28] = 5
    (((x, y, score),),) = from_heatmaps(logits, torch.tensor([roi])).tolist()
    assert (x, y) == pytest.approx(expected, abs=1e-4)
    assert score == pytest.approx(0.16245, abs=1e-5) or roi[2] != 66  # detectron2


def test_peaks_equal_torchvisions():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 17, 56, 56, generator=generator)
    corner = 50 * torch.rand(6, 2, generator=generator)
    boxes = torch.cat([corner, corner + torch.tensor([0.3, 40.0]) + 90 * torch.rand(6, 2, generator=generator)], dim=1)
    found = from_heatmaps(logits, boxes)
    expected, _ = heatmaps_to_keypoints(logits, boxes)
    assert (found[..., :2] - expected[..., :2]).abs().max() < 1e-4
    assert ((found[..., 2] > 0) & (found[..., 2] <= 1)).all()


def test_a_labelled_point_is_found_again():
    points = torch.tensor([[[30.0, 50, 2], [61, 131, 1]]])
    cells, _ = to_cells(points, ROI, side=56)
    maps = torch.nn.functional.one_hot(cells, 56**2).float().reshape(1, 2, 56, 56)
    assert (from_heatmaps(20 * maps, ROI)[..., :2] - points[..., :2]).abs().max() <= 2  # cells are 1×2 px


def test_points_that_are_covered_are_hidden():
    covered = torch.zeros(3, 4, dtype=torch.bool)
    covered[1, 2], covered[2, 3] = True, True
    points = [(2.0, 1.0, 2), (2.99, 1.99, 2), (3.0, 1.5, 2), (2.5, 1.5, 1), (4.0, 3.0, 2), (0.0, 0.0, 0)]
    hidden = hide(torch.tensor([points]), covered)
    assert hidden[0, :, 2].tolist() == [1, 1, 2, 1, 1, 0]
    assert torch.equal(hidden[..., :2], torch.tensor([points])[..., :2])


def test_similarity_by_hand():
    schema = KeypointSchema(names=("a", "b"), sigmas=(0.05, 0.1))
    truth = torch.tensor([[[10.0, 10, 2], [20, 10, 0]], [[0, 0, 0], [0, 0, 0]]], dtype=torch.float64)
    boxes = torch.tensor([[0.0, 0, 30, 20], [0, 0, 10, 10]], dtype=torch.float64)
    found = torch.tensor([[[13.0, 14, 1], [25, 25, 1]]], dtype=torch.float64)
    area = torch.tensor([400.0, 100], dtype=torch.float64)
    near = similarity(found, truth, boxes, area, schema)
    assert near[0, 0] == pytest.approx(torch.exp(torch.tensor(-25 / (0.01 * 400 * 2), dtype=torch.float64)).item())
    far = 2 * 5**2 / (0.04 * 100 * 2)  # from 20, twice the side of a box whose points nobody labelled
    assert near[0, 1] == pytest.approx((1 + torch.exp(torch.tensor(-far, dtype=torch.float64)).item()) / 2)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["Left Eye", "Right Eye", "Tail"], ((0, 1),)),
        (["R_eye", "L_eye"], ((1, 0),)),
        (["eye_l", "eye_r", "tail"], ((0, 1),)),
        (["LEFT_EYE", "RIGHT_EYE"], ((0, 1),)),
        (["leftmost", "lip", "rip"], ()),
        (["LIP", "RIP", "nose"], ()),
        (["LEye", "REye", "nose"], ((0, 1),)),
        (["lEye", "rEye"], ((0, 1),)),
        (["nose", "eyeR", "eyeL"], ((2, 1),)),
        (["frontLPaw", "frontRPaw", "hindLPaw"], ((0, 1),)),
        (["LFPaw", "RFPaw", "LBPaw", "RBPaw"], ((0, 1), (2, 3))),
        (["lsho", "rsho", "neck"], ((0, 1),)),
        (["lsho", "lelb", "relb", "rsho"], ((0, 3), (1, 2))),
        (["leye", "reye", "lear", "rear"], ((0, 1), (2, 3))),
        (["leye", "reye", "nose"], ()),
        (["left_eye", "right_eye", "lip", "rip"], ((0, 1),)),
        (["left_eye", "right_eye", "lhip", "rhip"], ((0, 1), (2, 3))),
        (["L_eye", "R_eye"], ((0, 1),)),
        (["left eye", "Right Eye"], ((0, 1),)),
        (["Left-Eye", "Right-Eye"], ((0, 1),)),
        (["eye (L)", "eye (R)"], ((0, 1),)),
        (["lefteye", "righteye"], ((0, 1),)),
        (["L1", "R1", "L2"], ((0, 1),)),
        (["left_of_right", "right_of_left"], ((0, 1),)),
        (["left_hand_left_finger", "right_hand_left_finger", "right_hand_right_finger"], ((0, 2),)),
        (["light", "right"], ()),
        (["left eye", "right_eye"], ()),
        (["panel", "paner", "upleft", "upper"], ()),
        (["l_a", "L_a", "r_a"], ((1, 2),)),
        (["глаз l", "глаз r"], ((0, 1),)),
        (["лоб", "R", "G"], ()),
    ],
)
def test_sides_are_found_however_they_are_written(names, pairs):
    assert KeypointSchema.from_names(names, []).flip_pairs == pairs


def test_pairs_can_be_named():
    schema = KeypointSchema.from_names(["left_eye", "right_eye", "near", "off", "tail"], [(0, 4)])
    named = schema.with_flip_pairs([("near", "off"), ("right_eye", "tail")])
    assert named.flip_pairs == ((2, 3), (1, 4))
    assert named.flip_order == (0, 4, 3, 2, 1)
    assert (named.names, named.skeleton, named.sigmas) == (schema.names, schema.skeleton, schema.sigmas)
    assert schema.with_flip_pairs([]).flip_pairs == ()
    with pytest.raises(ValueError, match="flip_pairs name 'left_ey', which is no keypoint: did you mean left_eye?"):
        schema.with_flip_pairs([("left_ey", "right_eye")])
    with pytest.raises(
        ValueError, match="flip_pairs name 'q', which is no keypoint: there are left_eye, right_eye, near, off, t"
    ):
        schema.with_flip_pairs([("near", "q")])
    for pairs in ([("near", "off"), ("off", "tail")], [("near", "near")]):
        with pytest.raises(ValueError, match="flip_pairs name '(off|near)' twice: a keypoint trades places with one other"):
            schema.with_flip_pairs(pairs)


def test_schemas_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match="each needs a name of its own"):
        KeypointSchema(names=("a", "a"))
    with pytest.raises(ValueError, match="the skeleton names keypoints that are not there: there are 2, counted from 1"):
        KeypointSchema(names=("a", "b"), skeleton=((0, 6),))


def test_schemas_without_sigmas_have_cocos_on_average():
    schema = KeypointSchema(names=("a", "b"))
    assert schema.sigmas == pytest.approx([sum(COCO_PERSON.sigmas) / 17] * 2, abs=5e-4)
