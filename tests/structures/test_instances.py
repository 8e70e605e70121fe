import pytest
import torch

from maskwright.structures import COCO_PERSON, Instances, KeypointSchema, Masks, boxes, keypoints


def make(n: int = 3, size: tuple[int, int] = (40, 60)) -> Instances:
    g = torch.Generator().manual_seed(n)
    corner = torch.randint(0, 20, (n, 2), generator=g).float()
    b = torch.cat([corner, corner + torch.randint(3, 15, (n, 2), generator=g)], dim=1)
    dense = torch.zeros(n, *size, dtype=torch.bool)
    for row, (x0, y0, x1, y1) in zip(dense, b.int().tolist(), strict=True):
        row[y0:y1, x0:x1] = True
    points = torch.zeros(n, 17, 3)
    points[:, :, :2] = torch.randint(1, 35, (n, 17, 2), generator=g)
    points[:, :9, 2] = 2
    points[:, 9:] = 0
    return Instances(
        size,
        boxes=b,
        labels=torch.arange(n),
        scores=torch.linspace(1, 0.5, n),
        masks=Masks.from_dense(dense),
        keypoints=points,
        is_crowd=torch.arange(n) == 1,
    )


def test_all_columns_move_together():
    one = make(4)[torch.tensor([2, 0])]
    assert one.labels.tolist() == [2, 0]
    assert torch.equal(one.masks.boxes(), one.boxes)
    assert len(one.keypoints) == 2
    both = Instances.cat([make(4), one])
    assert both.labels.tolist() == [0, 1, 2, 3, 2, 0]
    assert torch.equal(both.masks.boxes(), both.boxes)
    assert both.crowd.tolist() == [False, True, False, False, False, False]
    assert len(both[both.scores > 2]) == 0
    plain = Instances((4, 4), boxes=torch.ones(1, 4), labels=torch.zeros(1, dtype=torch.int64))
    crowd = Instances((4, 4), boxes=torch.ones(1, 4), labels=torch.zeros(1, dtype=torch.int64), is_crowd=torch.tensor([True]))
    assert Instances.cat([plain, crowd]).crowd.tolist() == [False, True]


def test_each_axis_is_resized_by_its_own_factor():
    box = torch.tensor([[10.0, 20, 30, 40]])
    assert boxes.scale(box, from_size=(40, 60), to_size=(80, 60)).tolist() == [[10, 40, 30, 80]]
    points = torch.tensor([[[10.0, 20, 2]]])
    placed = Instances((40, 60), boxes=box, labels=torch.zeros(1, dtype=torch.int64), keypoints=points).resize((80, 30))
    assert placed.boxes.tolist() == [[5, 40, 15, 80]]
    assert placed.keypoints.tolist() == [[[5, 40, 2]]]


def test_resize_there_and_back_is_the_same_box():
    m = make()
    back = m.resize((137, 91)).resize(m.image_size)
    assert torch.allclose(back.boxes, m.boxes, atol=1e-3)
    assert torch.allclose(back.keypoints, m.keypoints, atol=1e-3)
    assert m.resize((80, 120)).masks.areas().tolist() == (4 * m.masks.areas()).tolist()


def test_by_score_keeps_the_order_of_equals_and_sorted_objects_as_they_are():
    boxes = torch.arange(16.0).reshape(4, 4)
    some = Instances((9, 9), boxes=boxes, labels=torch.arange(4), scores=torch.tensor([0.2, 0.5, 0.2, 0.9]))
    assert some.by_score().labels.tolist() == [3, 1, 0, 2]
    assert some.by_score().by_score().scores.tolist() == pytest.approx([0.9, 0.5, 0.2, 0.2])
    done = some.by_score()
    assert done.by_score() is done


def test_flips_twice_are_identity_and_masks_follow_boxes():
    m = make()
    once = m.flip(horizontal=True, schema=COCO_PERSON)
    assert torch.equal(once.masks.boxes(), once.boxes)
    twice = once.flip(horizontal=True, schema=COCO_PERSON)
    assert torch.equal(twice.boxes, m.boxes)
    assert torch.equal(twice.keypoints, m.keypoints)
    assert torch.equal(twice.masks.to_dense(), m.masks.to_dense())


def test_flip_swaps_left_and_right_keypoints():
    points = torch.zeros(1, 17, 3)
    points[0, 1] = torch.tensor([10.0, 5.0, 2.0])  # left eye
    flipped = keypoints.flip_horizontal(points, (20, 60), COCO_PERSON)
    assert flipped[0, 2].tolist() == [50.0, 5.0, 2.0]
    assert flipped[0, 1].tolist() == [0.0, 0.0, 0.0]
    assert COCO_PERSON.flip_order == (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)  # spec § 12.4


def test_schema_finds_pairs_by_name():
    schema = KeypointSchema.from_names(["tip", "left_wing", "right_wing"], [(0, 1)])
    assert schema.flip_order == (0, 2, 1)
    assert KeypointSchema.from_names(list(COCO_PERSON.names), []) is COCO_PERSON
    with pytest.raises(ValueError, match="2 sigmas for 1"):
        KeypointSchema(names=("a",), sigmas=(0.1, 0.2))


def test_crop_keeps_what_is_visible():
    dense = torch.zeros(3, 20, 20, dtype=torch.bool)
    dense[0, 2:8, 2:8] = True
    dense[1, 15:18, 15:18] = True  # outside the window
    dense[2, 0:20, 9] = True  # cut at both ends
    m = Masks.from_dense(dense)
    points = torch.tensor([[[5.0, 5.0, 2.0], [1.0, 1.0, 2.0]]]).repeat(3, 1, 1)
    kept = Instances((20, 20), boxes=m.boxes(), labels=torch.arange(3), masks=m, keypoints=points).crop((3, 3, 12, 10))
    assert kept.labels.tolist() == [0, 2]
    assert kept.boxes.tolist() == [[0, 0, 5, 5], [6, 0, 7, 7]]
    assert kept.keypoints[0].tolist() == [[2, 2, 2], [0, 0, 0]]
    assert kept.masks.areas().tolist() == [25, 7]


def test_crop_drops_slivers_of_boxes_without_masks():
    b = torch.tensor([[0.0, 0, 10.01, 10], [0, 0, 12, 10], [20, 20, 20.5, 20.5]])
    cut = Instances((40, 40), boxes=b, labels=torch.arange(3)).crop((10, 0, 40, 40))
    assert cut.labels.tolist() == [1, 2]  # a hundredth of a pixel is no object; a small whole one is


def test_errors_say_what_they_got():
    b, labels = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"boxes are \(2, 3\)"):
        Instances((4, 4), boxes=torch.zeros(2, 3), labels=labels)
    with pytest.raises(ValueError, match=r"scores are \(3,\) but there are 2 boxes"):
        Instances((4, 4), boxes=b, labels=labels, scores=torch.zeros(3))
    with pytest.raises(ValueError, match=r"labels are torch.float32"):
        Instances((4, 4), boxes=b, labels=torch.zeros(2))
    with pytest.raises(ValueError, match=r"boxes are torch.int64"):
        Instances((4, 4), boxes=b.long(), labels=labels)
    with pytest.raises(ValueError, match=r"masks are \(2, 4, 5\) but image_size is \(4, 4\)"):
        Instances((4, 4), boxes=b, labels=labels, masks=Masks.from_dense(torch.zeros(2, 4, 5)))
    with pytest.raises(ValueError, match=r"expected \(2, J, 3\)"):
        Instances((4, 4), boxes=b, labels=labels, keypoints=torch.zeros(2, 17))
    with pytest.raises(ValueError, match="scores are given in some parts"):
        Instances.cat(
            [Instances((4, 4), boxes=b, labels=labels, scores=torch.zeros(2)), Instances((4, 4), boxes=b, labels=labels)]
        )
    with pytest.raises(ValueError, match="give their schema"):
        make().flip(horizontal=True)
    with pytest.raises(ValueError, match="keypoints to transpose"):
        make().transpose()


def test_no_objects_pass_through_everything():
    m = Instances.empty((10, 12), has_masks=True)
    assert len(m.resize((5, 6)).crop((0, 0, 3, 3)).flip(horizontal=True).transpose()) == 0
    assert len(Instances.cat([m, m])) == 0


def test_boxes_by_hand():
    a, b = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 5, 15, 25], [20, 20, 30, 30]])
    assert boxes.iou(a, b)[0].tolist() == pytest.approx([25 / 275, 0])
    assert boxes.coverage(b, a)[:, 0].tolist() == pytest.approx([25 / 200, 0])
    assert boxes.iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0
    assert boxes.clip(torch.tensor([[-5.0, 2, 50, 9]]), (8, 20)).tolist() == [[0, 2, 20, 8]]
    assert boxes.is_valid(torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 1], [0, 0, float("nan"), 1]])).tolist() == [
        True,
        False,
        False,
    ]
