"""Distributed decoding: each process of a run reads, hashes and decodes its share of the images once.

The result contains the items that could be decoded with the hashes of their bytes, the pixels of this
process's share, and a rejection for each other item. The encoded bytes are not kept. Training, evaluation and
sharding all use `ImageDecoder` and `collect_images`.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import astuple, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer.data.archive_errors import is_of_the_process, read_error
from trainer.data.colours import from_rgb
from trainer.data.convert import LARGE_PIXELS, Prepared, prepare
from trainer.data.decode import decode_and_resize, resize_image
from trainer.data.header import reason_of_failure
from trainer.data.image_store import ImageStore, Pixels, Write
from trainer.data.items import Item, Rejection
from trainer.data.progress import Progress
from trainer.data.sampler import initial_hosts
from trainer.distributed import ProcessGroup, ProcessInfo
from trainer.errors import DataError
from trainer.spec import PixelFormat
from trainer.spec.schema import DataSpec

_CIFAR_SIDE = 32
_compiling = threading.Lock()
_CHUNK_ITEMS = 32
# A call has an overhead of 0.5 ms, as much as decoding a small image; large ones are decoded one by one.
_CALL_BYTES = 1 << 20


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images and rejections."""

    items: tuple[Item, ...]
    contents: tuple[str, ...]
    """SHA-256 of each item's bytes, 64 hex digits."""
    rows: NDArray[np.int64]
    """Number of each item in `pixels`, int64 [len(items)]."""
    pixels: ImageStore
    rejections: tuple[Rejection, ...]
    converted: Mapping[str, int]
    """Number of items that were converted before decoding, by format; see `trainer.data.convert`."""


@dataclass(slots=True)
class DecodeResult:
    """Decoding result of one item."""

    content: str
    """SHA-256 of its bytes, 64 hex digits."""
    reason: str | None
    """Why it was rejected, or None."""
    converted: str = ""
    """The format that it was converted from, or an empty string."""


def decode_images(
    items: Sequence[Item],
    spec: DataSpec,
    cache_dir: Path,
    progress: Progress,
    group: ProcessGroup | None = None,
) -> DecodedImages:
    """Decode `items` on all cores to pixels of `spec.pixel_format`; return the images and rejections.

    Each process of the `group` decodes its share, followed by an all-gather of the results. Raises
    TemporaryError (full disk, lost connection to a process), UsageError (the cache is not writable),
    DataError (the processes have different items).
    """
    group = group or ProcessGroup(ProcessInfo())
    decoder = ImageDecoder(items, spec, progress)
    folder, budget_bytes = cache_dir / "pixels", spec.cache_mib << 20
    pixels = ImageStore(len(items), spec.pixel_format.shape, budget_bytes, folder, decoder.decode_again)
    owners = initial_hosts(np.arange(len(items)), group.process.process_count)
    pixels.cache(np.flatnonzero(owners == group.process.process_index), decoder.decode_first)
    return collect_images(items, _all_gather_results(decoder.results, items, group), pixels)


def collect_images(
    items: Sequence[Item], results: Sequence[DecodeResult], pixels: ImageStore
) -> DecodedImages:
    """Return the images and rejections that follow from the `results` of all `items`."""
    decoded = [row for row, result in enumerate(results) if result.reason is None]
    rejections = [
        Rejection(item.name, result.reason)
        for item, result in zip(items, results, strict=True)
        if result.reason is not None
    ]
    formats = Counter(results[row].converted for row in decoded if results[row].converted)
    return DecodedImages(
        items=tuple(items[row] for row in decoded),
        contents=tuple(results[row].content for row in decoded),
        rows=np.asarray(decoded, np.int64),
        pixels=pixels,
        rejections=tuple(rejections),
        converted=dict(sorted(formats.items())),
    )


def _all_gather_results(
    results: dict[int, DecodeResult], items: Sequence[Item], group: ProcessGroup
) -> list[DecodeResult]:
    """All-gather the results of all items. Raises DataError if the processes have different items."""
    if group.process.process_count > 1:
        names = hashlib.sha256("\0".join(item.name for item in items).encode()).hexdigest()
        if len(set(group.all_gather(names.encode()))) > 1:
            raise DataError(
                "The processes of the run have different files in the source.",
                "Use the same source for all processes.",
                received=f"{len(items)} files on {group.process.name(group.process.process_index)}",
            )
        local_results = {number: astuple(result) for number, result in results.items()}
        for message in group.all_gather(json.dumps(local_results).encode()):
            results |= {int(number): DecodeResult(*result) for number, result in json.loads(message).items()}
    return [results[number] for number in range(len(items))]


class ImageDecoder:
    """Thread-safe reader and decoder of items, in chunks."""

    def __init__(self, items: Sequence[Item], spec: DataSpec, progress: Progress) -> None:
        self._items, self._progress, self._max_pixels = items, progress, spec.max_image_pixels
        self._to_pixels = build_to_pixels(spec.pixel_format)
        self._one_large = threading.Lock()
        self.results: dict[int, DecodeResult] = {}
        """Results of `decode_first`, by number."""

    def decode_first(self, numbers: NDArray[np.int64], write: Write) -> None:
        """Decode the items of these `numbers` for the first time, `write` their pixels, record the results.

        Raises the errors of `write`.
        """
        task = self._progress.start("Decoding", len(numbers), "images")
        try:
            with closing(self._decode_chunks(numbers, write)) as chunks:
                for results in chunks:
                    self.results |= results
                    task.advance(len(results))
        finally:
            task.finish()

    def decode_again(self, numbers: NDArray[np.int64], write: Write) -> None:
        """Decode items that were decoded before, by any process, and `write` their pixels.

        Raises the errors of `write`, and DataError if an item fails.
        """
        with closing(self._decode_chunks(numbers, write)) as chunks:
            for results in chunks:
                self._require_decoded(results)

    def _decode_chunks(
        self, numbers: NDArray[np.int64], write: Write
    ) -> Generator[dict[int, DecodeResult], None, None]:
        chunks = [numbers[start : start + _CHUNK_ITEMS] for start in range(0, len(numbers), _CHUNK_ITEMS)]
        # Twice the number of cores, so that some threads decode while others wait for the disk.
        executor = ThreadPoolExecutor(2 * len(os.sched_getaffinity(0)), thread_name_prefix="decode")
        try:
            yield from executor.map(lambda chunk: self._decode_chunk(chunk, write), chunks)
        finally:
            # After a failure or an interrupt, pending chunks are cancelled.
            executor.shutdown(wait=True, cancel_futures=True)

    def _require_decoded(self, results: dict[int, DecodeResult]) -> None:
        failed = [number for number, result in results.items() if result.reason]
        if failed:
            raise DataError(
                "An image that was decoded before cannot be decoded any more: the source has changed.",
                "Restore the source, or start a new run.",
                received=f"{self._items[failed[0]].name}, {results[failed[0]].reason}",
            )

    def _decode_chunk(self, numbers: NDArray[np.int64], write: Write) -> dict[int, DecodeResult]:
        """Read and decode the items of these numbers, write their pixels and return their results."""
        results: dict[int, DecodeResult] = {}
        waiting: dict[int, Prepared] = {}
        for number in map(int, numbers):
            content, prepared = _read(self._items[number], self._max_pixels)
            results[number] = DecodeResult(content, prepared.reason, prepared.converted)
            if prepared.reason is None:
                waiting[number] = prepared
            if sum(len(waiting_image.data) for waiting_image in waiting.values()) >= _CALL_BYTES:
                self._decode(waiting, results, write)
                waiting = {}
        self._decode(waiting, results, write)
        return results

    def _decode(self, waiting: dict[int, Prepared], results: dict[int, DecodeResult], write: Write) -> None:
        """Decode all in one call; if it fails, decode one by one to find the damaged items."""
        if not waiting:
            return
        # Decoding a large image takes up to 15 bytes per pixel, so only one is decoded at a time.
        is_large = any(prepared.pixels > LARGE_PIXELS for prepared in waiting.values())
        try:
            with self._one_large if is_large else nullcontext():
                first = self._items[next(iter(waiting))]
                pixels = self._to_pixels(first.encoding, [prepared.data for prepared in waiting.values()])
        except tf.errors.InvalidArgumentError:
            if len(waiting) == 1:
                ((row, prepared),) = waiting.items()
                results[row].reason = reason_of_failure(prepared.data)
            else:
                for row, prepared in waiting.items():
                    self._decode({row: prepared}, results, write)
            return
        for row, image in zip(waiting, pixels, strict=True):
            write(row, image)


def _read(item: Item, max_pixels: int) -> tuple[str, Prepared]:
    """Return the hash of an item's bytes, and its decoder input.

    Raises TemporaryError and MemoryError for a limit that any other item would meet too.
    """
    try:
        data = item.read()
    except OSError as error:
        if is_of_the_process(error):
            raise read_error(item.name, error) from error
        data, reason = b"", f"cannot be read: {error.strerror}"
    else:
        is_short = item.length is not None and len(data) < item.length
        reason = "truncated: the file ends early" if is_short else ""
    content = hashlib.sha256(data).hexdigest()
    if reason or item.encoding == "cifar":
        return content, Prepared(data, reason or None)
    return content, prepare(data, max_pixels)


def build_to_pixels(form: PixelFormat) -> Callable[[str, list[bytes]], Pixels]:
    """Return a function (encoding, bytes of several items) -> uint8 [n, *form.shape]."""
    is_as_stored = form == PixelFormat(_CIFAR_SIDE, _CIFAR_SIDE, form.resize, form.interpolation)

    def to_pixels(encoding: str, files: list[bytes]) -> Pixels:
        if encoding == "image":
            return np.asarray(_compiled(encoding, form)(tf.constant(files)))
        planes = np.frombuffer(b"".join(files), np.uint8).reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
        images = planes.transpose(0, 2, 3, 1)
        return images if is_as_stored else np.asarray(_compiled(encoding, form)(tf.constant(images)))

    return to_pixels


def _compiled(encoding: str, form: PixelFormat) -> Callable[..., tf.Tensor]:
    """Return the compiled decoder; the lock prevents threads from tracing it more than once."""
    with _compiling:
        return _compile(encoding, form)


# Cached per process and pixel format: packing requests it again for every few hundred images.
@lru_cache(maxsize=8)
def _compile(encoding: str, form: PixelFormat) -> Callable[..., tf.Tensor]:
    function, signature, example = {
        "image": (
            partial(decode_and_resize, form=form),
            tf.TensorSpec([None], tf.string),
            tf.io.encode_png(tf.zeros([1, 1, 3], tf.uint8))[None],
        ),
        "cifar": (
            lambda image: resize_image(from_rgb(image, form.channels), form),
            tf.TensorSpec([None, _CIFAR_SIDE, _CIFAR_SIDE, 3], tf.uint8),
            tf.zeros([1, _CIFAR_SIDE, _CIFAR_SIDE, 3], tf.uint8),
        ),
    }[encoding]

    def decode_batch(values: tf.Tensor) -> tf.Tensor:
        # On the CPU even beside an accelerator, and sequentially: the threads provide enough parallelism, and
        # this limits the number of large images in memory to the number of threads.
        with tf.device("CPU:0"):
            pixels = tf.TensorSpec(form.shape, tf.uint8)
            return tf.map_fn(function, values, fn_output_signature=pixels, parallel_iterations=1)

    concrete: Callable[..., tf.Tensor] = tf.function(
        decode_batch, input_signature=[signature], autograph=False
    ).get_concrete_function()
    concrete(example)
    return concrete
