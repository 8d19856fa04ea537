"""Reading of shards from disk, from a bucket and on several hosts."""

from __future__ import annotations

import json
import shutil
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
from trainer.data.shards.index import read_catalogue
from trainer.data.shards.reader import load_shards
from trainer.data.shards.shard_cache import ShardCache
from trainer.distributed import ProcessInfo, join_process_group
from trainer.errors import DataError, UsageError
from trainer.spec.schema import DataSpec
from trainer.storage.store import open_store


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folder of images and the folder of their shards."""
    return make_packed(tmp_path_factory.mktemp("packed"))


def test_shards_hold_the_images_of_their_source(packed: tuple[Path, Path], tmp_path: Path) -> None:
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
    examples = [tf.train.Example.FromString(each.numpy()) for each in tf.data.TFRecordDataset(paths)]
    found = {
        each.features.feature["image/filename"].bytes_list.value[0].decode(): each.features.feature
        for each in examples
    }
    assert len(found) == 19
    odd = found["train/dogs/ä ö.png"]
    assert odd["image/encoded"].bytes_list.value[0] == png(777, side=20)
    assert odd["image/class/text"].bytes_list.value[0] == b"dogs"
    assert odd["image/class/label"].int64_list.value[0] == 1


def test_damage_is_found_when_an_image_is_read(packed: tuple[Path, Path], tmp_path: Path) -> None:
    for name, data in files_of(packed[1]).items():
        put(tmp_path / "shards" / name, data)
    path = next((tmp_path / "shards").glob("train-00001-*.tfrecord"))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    path.write_bytes(data)
    dataset = load(tmp_path / "shards", tmp_path, cache_mib=0)
    with pytest.raises(DataError, match="does not match its checksum"):
        dataset.train.pixels.gather(np.arange(len(dataset.train.items)))
    path.unlink()
    with pytest.raises(DataError, match="A shard is gone"):
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


def test_shards_of_a_bucket_come_ahead_and_make_room(
    bucket: str, packed: tuple[Path, Path], tmp_path: Path
) -> None:
    store = open_store(bucket)
    catalogue = read_catalogue(store)
    assert catalogue is not None
    folder, sizes = tmp_path / "shards" / "set", [shard.size for shard in catalogue.shards]
    assert [shard.split for shard in catalogue.shards[:5]] == ["train"] * 4 + ["validation"]
    budget = sum(sizes[:5]) - min(sizes[:4])  # all five but the smallest training shard
    staging = ShardCache(store, catalogue.shards, folder, budget, shuffled=1)
    order = [3, 1, 0, 2]
    staging.prefetch([3, 1, 3, 1, 0, 0, 2], [1, 0])
    staging.prefetch([4])  # validation, while training continues to read
    for shard in order:
        data = (packed[1] / catalogue.shards[shard].name).read_bytes()
        assert staging.read(shard, 5, 40) == data[5:45]
        following = order[order.index(shard) + 1 :][:1]
        until = time.monotonic() + 20
        while not all((folder / catalogue.shards[each].name).exists() for each in following):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert sum(path.stat().st_size for path in folder.glob("*.tfrecord")) <= budget
    for path in folder.glob("*.tfrecord"):
        path.unlink()  # as another process that needs the disk space does
    assert staging.read(2, 0, 8) == (packed[1] / catalogue.shards[2].name).read_bytes()[:8]
    staging.close()
    assert pixels_by_name(load_from(bucket, tmp_path)) == pixels_by_name(load(packed[1], tmp_path))


def test_a_copy_that_was_damaged_here_is_fetched_once_more(bucket: str, tmp_path: Path) -> None:
    expected = pixels_by_name(load_from(bucket, tmp_path))
    copies = list((tmp_path / "shards").glob("*/*.tfrecord"))
    assert copies
    for path in copies:
        path.write_bytes(bytes(path.stat().st_size))  # same size, all zeros
    shutil.rmtree(tmp_path / "pixels", ignore_errors=True)
    assert pixels_by_name(load_from(bucket, tmp_path)) == expected


def test_a_disk_that_holds_less_than_is_shuffled_is_refused_in_words(bucket: str, tmp_path: Path) -> None:
    catalogue = read_catalogue(store := open_store(bucket))
    assert catalogue is not None
    sizes = sorted(shard.size for shard in catalogue.shards if shard.split == "train")
    others = sum(shard.size for shard in catalogue.shards if shard.split != "train")
    least = sum(sizes[-3:]) + others
    ShardCache(store, catalogue.shards, tmp_path, least, shuffled=1).close()
    with pytest.raises(UsageError, match=r"data\.staged_mib.*data\.shuffle_shards.*for 1 shards"):
        ShardCache(store, catalogue.shards, tmp_path, least - 1, shuffled=1)
    ShardCache(
        open_store(str(tmp_path)), catalogue.shards, tmp_path, 0, shuffled=8
    ).close()  # local shards are read in place


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
def test_a_list_that_leads_out_of_its_folder_is_refused(
    packed: tuple[Path, Path], tmp_path: Path, key: str, value: str
) -> None:
    place = shutil.copytree(packed[1], tmp_path / "shards")
    values = json.loads((place / "shards.json").read_text())
    (values if key == "recipe" else values["shards"][0])[key] = value
    (place / "shards.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"list of the shards can't be used.*out|banana"):
        load(place, tmp_path / "cache")


def test_shards_are_refused_where_images_may_have_several_labels(
    packed: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"Shards hold one label an image; .*--data TABLE\.csv"):
        load(packed[1], tmp_path, labels="multi")


def test_a_list_without_the_name_of_a_class_is_refused(packed: tuple[Path, Path], tmp_path: Path) -> None:
    place = shutil.copytree(packed[1], tmp_path / "shards")
    values = json.loads((place / "shards.json").read_text())
    values["class_names"] = ["cats"]
    (place / "shards.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"index of the shards can't be used.*does not name"):
        load(place, tmp_path / "cache")
    (place / "shards.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="list of the shards can't be used"):
        load(place, tmp_path / "cache")


def test_shards_that_are_not_all_packed_yet_are_not_read_as_something_else(
    packed: tuple[Path, Path], tmp_path: Path
) -> None:
    place = shutil.copytree(packed[1], tmp_path / "shards")
    (place / "shards.json").unlink()
    (place / "packing-recipe.txt").write_text("aa")
    with pytest.raises(DataError, match="not all packed yet"):
        load(place, tmp_path / "cache")


def test_hosts_that_see_different_shards_are_refused(packed: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    pack(two_splits(tmp_path / "images", train=5), str(other), tmp_path / "cache")
    hosts = tuple(addresses(2))
    refused: dict[int, str] = {}

    def work(index: int, shards: Path) -> None:
        peers = join_process_group(ProcessInfo(hosts, index, hosts[0]), {}, 30.0, lambda text: None)
        store = open_store(str(shards))
        with pytest.raises(DataError, match="different shards") as caught:
            load_shards(store, read_catalogue(store), DataSpec(), tmp_path / str(index), peers)  # type: ignore[arg-type]
        refused[index] = str(caught.value)
        peers.shutdown()

    both = [threading.Thread(target=work, args=each) for each in enumerate((packed[1], other))]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    assert sorted(refused) == [0, 1]
    assert str(other) in refused[1]
