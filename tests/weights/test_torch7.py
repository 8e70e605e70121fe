"""Torch7's files: everything they may hold, nothing that they could run, and the authors' DeepMask and SharpMask inside."""

import contextlib
import math
import struct

import numpy as np
import pytest
import torch
from torch import nn

from maskwright.inference import load
from maskwright.layers.norms import FrozenNorm
from maskwright.runs.importing import import_weights
from maskwright.structures import ImageBatch
from maskwright.systems import SYSTEMS
from maskwright.weights.torch7 import Torch7Object, read_t7, tensors_of
from tests.weights.torch7_writer import LuaFunction, LuaObject, LuaTensor, Storage, tensor, write_t7


def test_everything_lua_knows_is_read(tmp_path):
    shared = {"x": 1}
    path = write_t7(
        tmp_path / "a.t7",
        {"nothing": None, "yes": True, "no": False, "n": 2.5, "text": "ü", 1: "first", "one": shared, "again": shared},
    )
    data = read_t7(path)
    assert data == {
        "nothing": None,
        "yes": True,
        "no": False,
        "n": 2.5,
        "text": "ü",
        1: "first",
        "one": {"x": 1},
        "again": {"x": 1},
    }
    assert data["one"] is data["again"]


@pytest.mark.parametrize(
    ("name", "code"),
    [("Float", "f4"), ("Double", "f8"), ("Long", "i8"), ("Int", "i4"), ("Byte", "u1"), ("Cuda", "f4"), ("CudaDouble", "f8")],
)
def test_tensors_of_all_types(tmp_path, name, code):
    array = np.arange(6).reshape(2, 3).astype(code)
    (found,) = read_t7(write_t7(tmp_path / "a.t7", {"t": tensor(array, name)})).values()
    assert found.numpy().dtype == array.dtype
    assert np.array_equal(found.numpy(), array)


def test_tensors_are_views_with_offset_and_strides(tmp_path):
    storage = Storage(np.arange(24, dtype="f4"))
    views = {"a": LuaTensor(storage, (2, 3), (3, 1), 4), "b": LuaTensor(storage, (3, 2), (1, 3), 4)}
    views["all"] = LuaTensor(storage, (24,), (1,))
    data = read_t7(write_t7(tmp_path / "a.t7", views))
    assert data["a"].tolist() == [[4, 5, 6], [7, 8, 9]]
    assert torch.equal(data["b"], data["a"].T)
    data["all"][4] = -1
    assert float(data["a"][0, 0]) == -1  # one storage
    empty = read_t7(write_t7(tmp_path / "b.t7", {"e": LuaTensor(Storage(np.empty(0, dtype="f4")), (), ())}))["e"]
    assert empty.numel() == 0


def test_functions_are_skipped_and_never_run(tmp_path):
    code = b"\x1bLJ os.execute('touch owned')"
    functions = {f"f{kind}": LuaFunction(code, {"up": 3}, kind) for kind in (6, 7, 8)}
    shared = LuaFunction(code)
    data = read_t7(write_t7(tmp_path / "a.t7", {**functions, "one": shared, "again": shared, "after": 7}))
    assert data == {"f6": None, "f7": None, "f8": None, "one": None, "again": None, "after": 7}
    assert not list(tmp_path.glob("owned"))


def test_objects_are_fields_with_a_name_and_may_hold_themselves(tmp_path):
    loop = LuaObject("nn.Sequential", train=False)
    loop.fields["modules"] = {1: LuaObject("nn.Linear", weight=tensor(np.ones((2, 3), dtype="f4"))), 2: loop}
    data = read_t7(write_t7(tmp_path / "a.t7", {"model": loop, "lr": 0.5}))
    assert isinstance(data["model"], Torch7Object)
    assert data["model"].name == "nn.Sequential"
    assert data["model"].fields["modules"][2] is data["model"]
    table = tensors_of(data)
    assert table["model.modules.1.weight"].shape == (2, 3)
    assert float(table["lr"]) == 0.5


def test_tables_that_share_tables_without_end_are_refused(tmp_path):
    table = {"x": 1}
    for _ in range(40):
        table = {"a": table, "b": table}
    with pytest.raises(ValueError, match="more than 100000 paths"):
        tensors_of(read_t7(write_t7(tmp_path / "a.t7", table)))


def test_files_of_version_0_name_their_class_at_once(tmp_path):
    path = write_t7(tmp_path / "a.t7", LuaObject("nn.Old", x=1))
    path.write_bytes(path.read_bytes().replace(struct.pack("<i", 3) + b"V 1", b""))
    assert read_t7(path).name == "nn.Old"


def damaged(data):
    yield b"", "cut off"
    yield b"PK\x03\x04 a zip file, really", "unknown kind"
    yield data[: len(data) // 2], "cut off|bytes wanted"
    yield struct.pack("<ii", 2, -5), "-5 bytes wanted"
    yield struct.pack("<ii", 2, 2**30), "bytes wanted"
    at = data.index(b"torch.FloatTensor") + len(b"torch.FloatTensor")
    yield data[:at] + struct.pack("<i", 99) + data[at + 4 :], "99 dimensions"
    yield data[: at + 4] + struct.pack("<q", 1000) + data[at + 12 :], "reaches beyond its storage"
    yield data[: at + 4] + struct.pack("<q", -1) + data[at + 12 :], "reaches beyond its storage"
    for size in (2**33, 2**60):  # strides of 0 would make much of little
        yield data[: at + 4] + struct.pack("<4q", size, size, 0, 0) + data[at + 36 :], "reaches beyond its storage"


def test_damaged_files_are_named(tmp_path):
    whole = write_t7(tmp_path / "whole.t7", {"t": tensor(np.ones((2, 3), dtype="f4"))}).read_bytes()
    for number, (data, message) in enumerate(damaged(whole)):
        path = tmp_path / f"{number}.t7"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message) as error:
            read_t7(path)
        assert str(path) in str(error.value)


def test_deep_nesting_is_an_error(tmp_path):
    nested = {}
    path = tmp_path / "deep.t7"
    piece = b"".join(struct.pack("<iiiid", 3, i, 1, 1, 1.0) for i in range(1, 5000))
    path.write_bytes(piece + struct.pack("<i", 0))
    with pytest.raises(ValueError, match="nested too deeply"):
        read_t7(path)
    assert nested == {}


def test_bytes_at_random_never_crash(tmp_path):
    whole = bytearray(
        write_t7(tmp_path / "whole.t7", {"t": tensor(np.ones((4, 3), dtype="f4")), "f": LuaFunction(b"x")}).read_bytes()
    )
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = whole.copy()
        for place in rng.integers(0, len(data), 3):
            data[place] = int(rng.integers(256))
        (tmp_path / "r.t7").write_bytes(data)
        with contextlib.suppress(ValueError):
            read_t7(tmp_path / "r.t7")


# The authors' models (spec, 11.2), written from ours


def linear(layer):
    weight = layer.weight.detach().numpy()
    return LuaObject("nn.Linear", weight=tensor(weight.reshape(weight.shape[0], -1)), bias=tensor(layer.bias.detach().numpy()))


def conv(layer, name="cudnn.SpatialConvolution"):
    fields = {"weight": tensor(layer.weight.detach().numpy()), "gradWeight": tensor(np.zeros(3, dtype="f4"))}
    if getattr(layer, "bias", None) is not None:
        fields["bias"] = tensor(layer.bias.detach().numpy())
    return LuaObject(name, **fields, hook=LuaFunction(b"bytecode"))


def sequential(*modules):
    return LuaObject("nn.Sequential", modules=dict(enumerate(modules, 1)))


def padded(layer):
    return sequential(LuaObject("nn.SpatialSymmetricPadding", pad_l=1), conv(layer))


def affine(norm):
    scale, shift = (v.detach().numpy().reshape(1, -1, 1, 1) for v in norm.factors())
    return LuaObject("nn.SpatialConstDiagonal", a=tensor(scale), b=tensor(shift))


def relu():
    return LuaObject("nn.ReLU")


def bottleneck(block):
    first, second = [conv(block.conv1), affine(block.bn1), relu()], [padded(block.conv2), affine(block.bn2), relu()]
    branch = sequential(*first, *second, conv(block.conv3), affine(block.bn3))
    shortcut = LuaObject("nn.Identity")
    if block.downsample is not None:
        shortcut = sequential(conv(block.downsample[0]), affine(block.downsample[1]))
    both = LuaObject("nn.ConcatTable", modules={1: branch, 2: shortcut})
    return sequential(both, LuaObject("nn.CAddTable"), relu())


def trunk_of(system):
    network = system.backbone.network
    return sequential(
        padded(network.conv1),
        affine(network.bn1),
        relu(),
        LuaObject("nn.SpatialMaxPooling"),
        *(sequential(*map(bottleneck, layer)) for layer in (network.layer1, network.layer2, network.layer3)),
        LuaObject("nn.SpatialZeroPadding", pad_l=-1),
        conv(system.head.reduce[0]),
        relu(),
        LuaObject("nn.View"),
        linear(system.head.encode),
    )


def score_of(system):
    score = system.head.score
    dropout = LuaObject("nn.Dropout", p=0.5)
    return sequential(dropout, linear(score.hidden), LuaObject("nn.Threshold"), dropout, linear(score.logit))


CONFIG = {"iSz": 160, "oSz": 56, "gSz": 112, "km": 32, "ks": 32, "testing": False}


def deepmask_file(system, path):
    mask = sequential(sequential(linear(system.mask_head.logits)), LuaObject("nn.SpatialReSamplingEx"))
    model = LuaObject("nn.DeepMask", trunk=trunk_of(system), maskBranch=mask, scoreBranch=score_of(system), fSz=10)
    return write_t7(path, {"model": model, "config": CONFIG})


def sharpmask_file(system, path):
    stages = system.refinement.stages
    horizontal, vertical = {}, {0: sequential(linear(system.refinement.encode), LuaObject("nn.View"))}
    for i, stage in enumerate(stages, 1):
        crop = [LuaObject("nn.SpatialZeroPadding", pad_l=-2)] if i > 1 else []
        horizontal[i] = sequential(
            *crop, padded(stage.thin1), relu(), padded(stage.thin2), relu(), padded(stage.merge_features)
        )
        vertical[i] = sequential(padded(stage.mask), relu(), padded(stage.merge_mask))
    refs = {0: vertical[0]}
    for i in range(1, 5):
        both = LuaObject("nn.ParallelTable", modules={1: horizontal[i], 2: vertical[i]})
        end = [LuaObject("nn.SpatialSymmetricPadding"), conv(system.refinement.logits)] if i == 4 else []
        refs[i] = sequential(both, LuaObject("nn.CAddTable"), relu(), LuaObject("nn.SpatialUpSamplingNearest"), *end)
    mask = sequential(sequential(linear(system.mask_head.logits)), LuaObject("nn.SpatialReSamplingEx"))
    model = LuaObject(
        "nn.SharpMask",
        km=32, ks=32, skpos={1: 8, 2: 6, 3: 5, 4: 3}, fSz=10, trunk=trunk_of(system), scoreBranch=score_of(system),
        maskBranchDM=mask, neths=horizontal, netvs=vertical, refs=refs,
    )  # fmt: skip
    return write_t7(path, {"model": model, "config": {**CONFIG, "gSz": 160}})


def random_system(name, **arguments):
    torch.manual_seed(0)
    system = SYSTEMS[name](num_classes=1, max_detections=3, octaves=(0.0,), **arguments).eval()
    for module in system.modules():
        if isinstance(module, FrozenNorm):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.2, 0.6)
    return system


@pytest.mark.parametrize(("name", "write"), [("deepmask-r50", deepmask_file), ("sharpmask-r50", sharpmask_file)])
def test_the_authors_models_become_runs_that_answer_alike(name, write, tmp_path):
    system = random_system(name)
    file = write(system, tmp_path / "model.t7")
    card = import_weights(file, system=name, out=tmp_path / "run")
    assert card.categories.names == ("object",)
    model = load(tmp_path / "run", device="cpu", precision="float32", max_detections=3, octaves=(0.0,))
    images = ImageBatch(torch.randn(1, 3, 48, 64), [(48, 64)], [(48, 64)])
    with torch.inference_mode():
        (mine,), (theirs,) = model.detect(images), system.predict(images)
    assert torch.allclose(mine.scores, theirs.scores, atol=1e-5)
    assert mine.masks.areas().tolist() == pytest.approx(theirs.masks.areas().tolist(), abs=3)
    other = "deepmask-r50" if name == "sharpmask-r50" else "sharpmask-r50"
    with pytest.raises(ValueError, match=f"another system: import it with --system {name}"):
        import_weights(file, system=other, out=tmp_path / "other")


def test_models_of_other_sizes_and_with_missing_layers_are_named(tmp_path):
    system = random_system("deepmask-r50")
    mask = sequential(sequential(linear(system.mask_head.logits)))
    fields = {"trunk": trunk_of(system), "maskBranch": mask, "scoreBranch": score_of(system)}
    file = write_t7(tmp_path / "a.t7", {"model": LuaObject("nn.DeepMask", **fields), "config": {**CONFIG, "iSz": 112}})
    with pytest.raises(ValueError, match="iSz is 112, expected"):
        import_weights(file, system="deepmask-r50", out=tmp_path / "run")
    file = write_t7(tmp_path / "c.t7", {"model": LuaObject("nn.DeepMask", **fields), "config": {}})
    with pytest.raises(ValueError, match="iSz is not told, oSz is not told, expected"):
        import_weights(file, system="deepmask-r50", out=tmp_path / "run")
    fields["trunk"].fields["modules"][1].fields["modules"][2].fields["bias"] = tensor(np.ones(64, dtype="f4"))
    file = write_t7(tmp_path / "d.t7", {"model": LuaObject("nn.DeepMask", **fields), "config": CONFIG})
    with pytest.raises(ValueError, match=r"trunk\.modules\.1 has a bias before its norm"):
        import_weights(file, system="deepmask-r50", out=tmp_path / "run")
    del fields["trunk"].fields["modules"][1].fields["modules"][2].fields["bias"]
    del fields["scoreBranch"]
    file = write_t7(tmp_path / "b.t7", {"model": LuaObject("nn.DeepMask", **fields), "config": CONFIG})
    with pytest.raises(ValueError, match=r"scoreBranch\.modules\.2 holds no layer"):
        import_weights(file, system="deepmask-r50", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_norms_take_up_what_is_added_to_their_variance():
    norm = FrozenNorm(nn.BatchNorm2d(1))
    norm.weight.fill_(0.7 * math.sqrt(1 + norm.eps))
    assert float(norm.factors()[0]) == pytest.approx(0.7, rel=1e-6)
