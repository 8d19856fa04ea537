"""Reading of shards from disk, from a bucket and on several hosts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.bucket_server import BUCKET, bucket_server
from helpers.free_ports import addresses
from helpers.small_data import SIZE, load, png, put, two_splits
from helpers.small_shards import files_of, make_packed, pack, pixels_by_name

from trainer.data.dataset import Dataset
from trainer.data.progress import SilentProgress
from trainer.data.shards.index import read_shard_manifest
from trainer.data.shards.packed import ShardCache
from trainer.data.shards.reader import load_shards
from trainer.distributed import ProcessInfo, join_process_group
from trainer.errors import DataError, UsageError
from trainer.spec.schema import DataSpec
from trainer.storage import open_store


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folder of images and the folder of their shards."""
    return make_packed(tmp_path_factory.mktemp("packed"))


def test_shards_contain_the_images_of_their_source(packed: tuple[Path, Path], tmp_path: Path) -> None:
    images, shards = packed
    before = load(images, tmp_path, max_rejected=0.5)
    for cache_mib in (0, 64):  # without and with a cache of decoded images
        after = load(shards, tmp_path, cache_mib=cache_mib)
        assert pixels_by_name(after) == pixels_by_name(before)
        assert after.class_names == before.class_names
        assert after.rejected == before.rejected
        assert after.summary["splits"] == before.summary["splits"]
    item = after.splits["train"].items[3]
    assert item.read() == (images / item.name).read_bytes()
    # Shards contain the original files, so one set serves all image sizes and channels.
    form = {"image_size": [SIZE, 2 * SIZE], "channels": 4}
    wide = load(shards, tmp_path, **form)
    assert wide.train.pixels.shape[1:] == (SIZE, 2 * SIZE, 4)
    assert pixels_by_name(wide) == pixels_by_name(load(images, tmp_path, max_rejected=0.5, **form))


def test_tensorflow_reads_the_shards(packed: tuple[Path, Path]) -> None:
    paths = sorted(map(str, packed[1].glob("train-*.tfrecord")))
    assert len(paths) > 2
    examples = [tf.train.Example.FromString(record.numpy()) for record in tf.data.TFRecordDataset(paths)]
    features = {
        example.features.feature["image/filename"].bytes_list.value[0].decode(): example.features.feature
        for example in examples
    }
    assert len(features) == 19
    odd = features["train/dogs/ä ö.png"]
    assert odd["image/encoded"].bytes_list.value[0] == png(777, side=20)
    assert odd["image/class/text"].bytes_list.value[0] == b"dogs"
    assert odd["image/class/label"].int64_list.value[0] == 1


def test_damage_is_an_error_when_an_image_is_read(packed: tuple[Path, Path], tmp_path: Path) -> None:
    for name, data in files_of(packed[1]).items():
        put(tmp_path / "shards" / name, data)
    path = next((tmp_path / "shards").glob("train-00001-*.tfrecord"))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    path.write_bytes(data)
    dataset = load(tmp_path / "shards", tmp_path, cache_mib=0)
    with pytest.raises(DataError, match="checksum of an image does not match"):
        dataset.train.pixels.gather(np.arange(len(dataset.train.items)))
    path.unlink()
    with pytest.raises(DataError, match="A shard does not exist"):
        dataset.train.pixels.gather(np.arange(len(dataset.train.items)))
    index = tmp_path / "shards" / "index.npys"
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(DataError, match="index of the shards"):
        load(tmp_path / "shards", tmp_path)
    put(tmp_path / "shards" / "shards.json", b'{"format": 2}')
    with pytest.raises(DataError, match="another version"):
        load(tmp_path / "shards", tmp_path)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, packed: tuple[Path, Path]) -> Iterator[str]:
    """Yield the URI of the shards in a bucket."""
    with bucket_server() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        store = open_store(f"gs://{BUCKET}/shards")
        for path in packed[1].iterdir():
            store.upload(path, path.name)
        yield store.uri


def test_shards_of_a_bucket_are_prefetched_and_evicted(
    bucket: str, packed: tuple[Path, Path], tmp_path: Path
) -> None:
    store = open_store(bucket)
    manifest = read_shard_manifest(store)
    assert manifest is not None
    folder, sizes = tmp_path / "shards" / "set", [shard.size for shard in manifest.shards]
    assert [shard.split for shard in manifest.shards[:5]] == ["train"] * 4 + ["validation"]
    budget = sum(sizes[:5]) - min(sizes[:4])  # all five but the smallest training shard
    cache = ShardCache(store, manifest.shards, folder, budget, shuffled=1)
    order = [3, 1, 0, 2]
    cache.prefetch([3, 1, 3, 1, 0, 0, 2], [1, 0])
    cache.prefetch([4])  # validation, while training continues to read
    for shard in order:
        data = (packed[1] / manifest.shards[shard].name).read_bytes()
        assert cache.read(shard, 5, 40) == data[5:45]
        following = order[order.index(shard) + 1 :][:1]
        deadline = time.monotonic() + 20
        while not all((folder / manifest.shards[number].name).exists() for number in following):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert sum(path.stat().st_size for path in folder.glob("*.tfrecord")) <= budget
    for path in folder.glob("*.tfrecord"):
        path.unlink()  # as another process that needs the disk space does
    assert cache.read(2, 0, 8) == (packed[1] / manifest.shards[2].name).read_bytes()[:8]
    cache.close()
    assert pixels_by_name(load_from(bucket, tmp_path)) == pixels_by_name(load(packed[1], tmp_path))


READER = """
import sys
from pathlib import Path
from trainer.data.shards.index import read_shard_manifest
from trainer.data.shards.packed import ShardCache
from trainer.storage import open_store
store = open_store(sys.argv[1])
cache = ShardCache(store, read_shard_manifest(store).shards, Path(sys.argv[2]), 1 << 30, shuffled=1)
for upcoming in ([0, 1, 2], [2], [0, 1, 2]):  # the second pass unlocks the other shards
    cache.prefetch(upcoming)
    for shard in upcoming:
        cache.read(shard, 0, 8)
print("ready", flush=True)
sys.stdin.read()
"""


def test_shard_that_another_process_reads_is_not_evicted(bucket: str, tmp_path: Path) -> None:
    store, folder = open_store(bucket), tmp_path / "shards" / "set"
    manifest = read_shard_manifest(store)
    assert manifest is not None
    shards = manifest.shards

    def read_alone(number: int) -> set[str]:
        """Read a shard with a budget for this shard only; return the names of the remaining files."""
        cache = ShardCache(store, shards[number : number + 1], folder, shards[number].size, shuffled=1)
        assert len(cache.read(0, 0, 8)) == 8
        cache.close()
        return {path.name for path in folder.glob("*.tfrecord")}

    with subprocess.Popen(
        [sys.executable, "-c", READER, bucket, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        before = {path.name: path.stat().st_ino for path in folder.glob("*.tfrecord")}
        assert set(before) == {shard.name for shard in shards[:3]}
        assert read_alone(3) == {shard.name for shard in shards[:4]}
        assert {name: (folder / name).stat().st_ino for name in before} == before
    # The locks end with the process.
    assert read_alone(4) == {shards[4].name}


def test_damaged_local_copy_is_downloaded_again(bucket: str, tmp_path: Path) -> None:
    expected = pixels_by_name(load_from(bucket, tmp_path))
    copies = list((tmp_path / "shards").glob("*/*.tfrecord"))
    assert copies
    for path in copies:
        path.write_bytes(bytes(path.stat().st_size))  # same size, all zeros
    shutil.rmtree(tmp_path / "pixels", ignore_errors=True)
    assert pixels_by_name(load_from(bucket, tmp_path)) == expected


def test_disk_budget_below_the_shuffle_window_is_an_error(bucket: str, tmp_path: Path) -> None:
    manifest = read_shard_manifest(store := open_store(bucket))
    assert manifest is not None
    sizes = sorted(shard.size for shard in manifest.shards if shard.split == "train")
    others = sum(shard.size for shard in manifest.shards if shard.split != "train")
    least = sum(sizes[-3:]) + others
    ShardCache(store, manifest.shards, tmp_path, least, shuffled=1).close()
    with pytest.raises(UsageError, match=r"data\.staged_mib.*data\.shuffle_shards.*for 1 shards"):
        ShardCache(store, manifest.shards, tmp_path, least - 1, shuffled=1)
    ShardCache(
        open_store(str(tmp_path)), manifest.shards, tmp_path, 0, shuffled=8
    ).close()  # local shards are read in folder


def load_from(uri: str, cache: Path) -> Dataset:
    from trainer.data.load import load_dataset

    spec = DataSpec(source=uri, image_size=SIZE, cache_mib=0)
    return load_dataset(spec, cache, SilentProgress(), lambda rejected: None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../../out.tfrecord"),
        ("name", "/tmp/out.tfrecord"),
        ("split", "banana"),
        ("recipe", "../../out"),
    ],
)
def test_manifest_with_a_path_outside_its_folder_is_an_error(
    packed: tuple[Path, Path], tmp_path: Path, key: str, value: str
) -> None:
    folder = shutil.copytree(packed[1], tmp_path / "shards")
    values = json.loads((folder / "shards.json").read_text())
    (values if key == "recipe" else values["shards"][0])[key] = value
    (folder / "shards.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"manifest of the shards is invalid.*out|banana"):
        load(folder, tmp_path / "cache")


def test_shards_with_multi_label_setting_are_an_error(packed: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Shards store one label per image, .*--data TABLE\.csv"):
        load(packed[1], tmp_path, labels="multi")


def test_manifest_without_a_class_name_is_an_error(packed: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(packed[1], tmp_path / "shards")
    values = json.loads((folder / "shards.json").read_text())
    values["class_names"] = ["cats"]
    (folder / "shards.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"index of the shards is invalid.*not in shards\.json"):
        load(folder, tmp_path / "cache")
    (folder / "shards.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="manifest of the shards is invalid"):
        load(folder, tmp_path / "cache")


def test_incomplete_shards_are_not_read_as_another_layout(packed: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(packed[1], tmp_path / "shards")
    (folder / "shards.json").unlink()
    (folder / "packing-recipe.txt").write_text("aa")
    with pytest.raises(DataError, match="shards are incomplete"):
        load(folder, tmp_path / "cache")


def test_hosts_with_different_shards_are_an_error(packed: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    pack(two_splits(tmp_path / "images", train=5), str(other), tmp_path / "cache")
    hosts = tuple(addresses(2))
    messages: dict[int, str] = {}

    def work(index: int, shards: Path) -> None:
        group = join_process_group(ProcessInfo(hosts, index, hosts[0]), {}, 30.0, lambda text: None)
        store = open_store(str(shards))
        with pytest.raises(DataError, match="different shards") as caught:
            load_shards(store, read_shard_manifest(store), DataSpec(), tmp_path / str(index), group)  # type: ignore[arg-type]
        messages[index] = str(caught.value)
        group.shutdown()

    threads = [threading.Thread(target=work, args=case) for case in enumerate((packed[1], other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(messages) == [0, 1]
    assert str(other) in messages[1]
