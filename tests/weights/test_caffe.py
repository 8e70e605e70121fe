"""Caffe's files: the wire format, damaged ones, and the authors' MNC inside."""

import struct

import h5py
import numpy as np
import pytest
import torch

from maskwright.formats.voc import CLASSES
from maskwright.runs.importing import import_weights
from maskwright.systems import SYSTEMS
from maskwright.weights import mnc
from maskwright.weights.caffe import read_caffemodel
from maskwright.weights.mnc import _LAYERS


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number, wire, value):
    key = varint(number << 3 | wire)
    return key + (varint(value) if wire == 0 else varint(len(value)) + value if wire == 2 else value)


def blob(array, *, how="packed"):
    array = np.asarray(array)
    if how == "legacy":  # four sizes, one number after the other
        sizes = (1,) * (4 - array.ndim) + array.shape
        numbers = b"".join(field(5, 5, struct.pack("<f", v)) for v in array.reshape(-1).tolist())
        return b"".join(field(n, 0, size) for n, size in enumerate(sizes, start=1)) + numbers
    data = field(8, 2, array.astype("<f8").tobytes()) if how == "double" else field(5, 2, array.astype("<f4").tobytes())
    dims = b"".join(map(varint, array.shape))
    return field(7, 2, field(1, 2, dims)) + data


def write_caffemodel(path, layers, *, how="packed", v1=False):
    """layers: {name: [arrays]}."""
    net = field(1, 2, b"a net")
    for name, arrays in layers.items():
        kind = field(5, 0, 4) if v1 else field(2, 2, b"Convolution")
        blobs = b"".join(field(6 if v1 else 7, 2, blob(array, how=how)) for array in arrays)
        net += field(2 if v1 else 100, 2, field(4 if v1 else 1, 2, name.encode()) + kind + blobs)
    path.write_bytes(net)
    return path


@pytest.mark.parametrize(("how", "v1"), [("packed", False), ("double", False), ("legacy", False), ("legacy", True)])
def test_all_ways_of_writing_give_the_same_numbers(how, v1, tmp_path):
    weight, bias = np.arange(24.0).reshape(2, 3, 2, 2) / 7, np.array([1.5, -2.0])
    path = write_caffemodel(tmp_path / "a.caffemodel", {"conv": [weight, bias], "relu": []}, how=how, v1=v1)
    found = read_caffemodel(path)
    assert list(found) == ["conv.0", "conv.1"]
    assert np.array_equal(found["conv.0"].numpy(), weight.astype(np.float32))
    assert found["conv.1"].flatten().tolist() == [1.5, -2.0]


def test_hdf5_is_read_the_same(tmp_path):
    with h5py.File(tmp_path / "a.caffemodel.h5", "w") as file:
        file["data/conv/0"], file["data/conv/1"] = np.ones((2, 3, 1, 1), np.float32), np.zeros(2, np.float32)
        file.create_group("data/conv_ext")  # shares the numbers of conv
    found = read_caffemodel(tmp_path / "a.caffemodel.h5")
    assert {name: tuple(t.shape) for name, t in found.items()} == {"conv.0": (2, 3, 1, 1), "conv.1": (2,)}
    (tmp_path / "b.caffemodel.h5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"b\.caffemodel\.h5: damaged, or not a Caffe network"):
        read_caffemodel(tmp_path / "b.caffemodel.h5")


def test_damaged_files_are_named(tmp_path):
    whole = write_caffemodel(tmp_path / "a.caffemodel", {"conv": [np.ones((2, 3))]}).read_bytes()
    path = tmp_path / "b.caffemodel"
    two_for_five = field(7, 2, field(1, 0, 5)) + field(5, 2, bytes(8))
    for data, message in (
        (whole[:-3], "cut off or not a .caffemodel"),
        (b"\xff" * 20, "more than ten bytes"),
        (field(1, 2, b"text"), "holds no layer with numbers"),
        (field(100, 3, b""), "unknown wire type 3"),
        (b"", "holds no layer"),
        (field(100, 2, field(1, 2, b"x") + field(7, 2, two_for_five)), "a blob of 5 holds 2"),
        (field(100, 2, field(7, 2, field(5, 0, 7) + field(1, 0, 3))), "a blob of 3 x 1 x 1 x 1 holds 0"),
        (field(100, 2, field(7, 2, field(7, 2, field(1, 0, 2**63 - 1) * 40))), "holds 0 numbers"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_caffemodel(path)


def test_hdf5_gives_nothing_of_other_files_and_nothing_that_is_not_there(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.ones(3, np.float32)
    with h5py.File(tmp_path / "a.caffemodel.h5", "w") as file:
        file.create_group("data/conv")["0"] = h5py.ExternalLink("other.h5", "secret")
    with pytest.raises(ValueError, match="lies in another place"):
        read_caffemodel(tmp_path / "a.caffemodel.h5")
    with h5py.File(tmp_path / "b.caffemodel.h5", "w") as file:
        file.create_dataset("data/conv/0", shape=(2**20, 2**9), dtype="f4", chunks=(64, 64))  # two gigabytes that nobody wrote
    with pytest.raises(ValueError, match="larger than the file"):
        read_caffemodel(tmp_path / "b.caffemodel.h5")


# The authors' MNC


def shapes(num_classes=2, side=4, hidden=8, channels=6):
    """Their layers, much smaller: each layer's weight and bias."""
    table = {}
    for name in _LAYERS:
        table[name] = ((3, 2, 3, 3), (3,))
    k = num_classes + 1
    table |= {"fc6_maskest": ((5, channels), (5,)), "mask_pred": ((side**2, 5), (side**2,))}
    for path in ("", "_mask"):
        table |= {f"fc6{path}": ((hidden, channels), (hidden,)), f"fc7{path}": ((hidden, hidden), (hidden,))}
    table |= dict.fromkeys(("cls_score", "seg_cls_score"), ((k, 2 * hidden), (k,)))
    return table | {"bbox_pred": ((4 * k, 2 * hidden), (4 * k,))}


def authors(**sizes):
    g = torch.Generator().manual_seed(0)
    return {
        f"{name}.{i}": torch.randn(shape, generator=g) for name, pair in shapes(**sizes).items() for i, shape in enumerate(pair)
    }


def test_the_background_moves_to_the_end_and_boxes_get_their_unit():
    state = authors()
    converted = mnc.convert(state)
    ours = converted.tensors
    assert converted.arguments == {"num_classes": 2, "mask_side": 4}
    classes = ours["category_head.mask_classes.weight"]
    assert torch.equal(classes, state["seg_cls_score.0"][[1, 2, 0]])
    deltas = ours["category_head.deltas.bias"].reshape(3, 4)
    wanted = state["bbox_pred.1"].reshape(3, 4)[[1, 2, 0]] * torch.tensor([10.0, 10, 5, 5])
    torch.testing.assert_close(deltas, wanted)
    assert torch.equal(ours["rpn.objectness.weight"], state["rpn_cls_score.0"])
    assert torch.equal(ours["category_head.mask_path.fc1.weight"], state["fc6_mask.0"])
    assert mnc.convert({**state, "fc6_ext.0": torch.zeros(1)}).tensors.keys() == ours.keys()  # shared, once more
    old = {name: value.reshape(1, 1, *value.shape) if value.ndim == 2 else value for name, value in state.items()}
    again = mnc.convert(old).tensors
    assert all(torch.equal(again[name], value) for name, value in ours.items())


def test_missing_and_strange_layers_are_named():
    state = authors()
    with pytest.raises(ValueError, match=r"missing fc7\.0; left over conv9\.0"):
        mnc.convert({**{k: v for k, v in state.items() if k != "fc7.0"}, "conv9.0": torch.zeros(1)})


def test_layers_of_strange_shapes_are_named():
    state = authors()
    for name, value in (
        ("bbox_pred.0", torch.zeros(7, 4)),
        ("fc6.0", torch.zeros(3)),
        ("mask_pred.0", torch.zeros(2, 1, 3, 4)),
    ):
        with pytest.raises(ValueError, match="rows"):
            mnc.convert({**state, name: value})


def test_names_and_shapes_are_those_of_the_network():
    with torch.device("meta"):
        system = SYSTEMS["mnc-vgg16-released"](num_classes=20)
        state = {}
        for theirs, ours in _LAYERS.items():
            for i, kind in enumerate(("weight", "bias")):
                state[f"{theirs}.{i}"] = torch.zeros_like(system.state_dict()[f"{ours}.{kind}"])
        converted = mnc.convert(state)
    assert {k: v.shape for k, v in converted.tensors.items()} == {k: v.shape for k, v in system.state_dict().items()}
    assert converted.names == CLASSES
    assert state["fc6_maskest.0"].shape == (256, 100_352)  # spec § 17
    assert state["mask_pred.0"].shape == (441, 256)
    assert state["bbox_pred.0"].shape == (84, 8192)


def test_other_networks_are_not_taken_for_it(tmp_path):
    path = write_caffemodel(tmp_path / "vgg.caffemodel", {"conv1_1": [np.ones((2, 3, 3, 3))]})
    with pytest.raises(ValueError, match=r"vgg\.caffemodel: not a checkpoint of"):
        import_weights(path, system="mnc-vgg16", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
