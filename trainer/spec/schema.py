"""Schema of a run: `RunSpec` and its data, training and publication sections.

Validates plain mappings from YAML strictly: a string is not converted to a number, and an unknown key is an
error. No file is read here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from trainer.spec.augment import AugmentSpec
from trainer.spec.checked import (
    OPEN,
    Checked,
    Count,
    Fraction,
    NonNegative,
    Positive,
    SettingError,
    cross_check,
)
from trainer.spec.denoise import DenoiseSpec
from trainer.spec.networks import (
    LEAST_SIDE,
    NO_WEIGHTS,
    AirbenchSpec,
    PlainSpec,
    PretrainedSpec,
    ResidualSpec,
)
from trainer.spec.optimizer import FinetuneSpec, OptimizerSpec
from trainer.spec.pixels import PIXEL_SETTINGS, ImageSize, PixelFormat, sides_of

RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""Regular expression of a run name."""


_EXIF_FIELDS = ("date", "camera", "serial")


def _group_problem(value: str) -> str:
    """Return why `value` is no data.group; empty if it is one."""
    kind, colon, rest = value.partition(":")
    if value == "duplicates":
        return ""
    if kind not in ("name", "column", "exif") or not colon or not rest:
        return "it has another form"
    if kind == "exif" and rest not in _EXIF_FIELDS:
        return f"the EXIF field is none of {', '.join(_EXIF_FIELDS)}"
    if kind != "name":
        return ""
    try:
        re.compile(rest)
    except re.error as error:
        return f"the regular expression has an error: {error}"
    return ""


class DataSpec(Checked):
    """Source of the images, and how they become inputs of the network."""

    source: str = Field("embedded:digits", min_length=1)
    """Folder, archive, import file, or a file://, https:// or gs:// URL. embedded:digits is the demo data."""
    checksum: str | None = Field(None, pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")
    """Expected digest of a downloaded or local archive, as md5:HEX or sha256:HEX."""
    labels: Literal["single", "multi"] = "single"
    """Labels per image: one, or any number of them listed in a table; see docs/several-labels.md."""
    threshold_fraction: float = Field(0.1, ge=0.0, lt=1.0)
    """With labels multi: fraction of the training images that is set aside to choose the threshold of each
    label; 0 chooses the thresholds on the training images."""
    layout: Literal["auto", "folders", "import", "tfrecord", "webdataset", "parquet", "cifar", "shards"] = (
        "auto"
    )
    """How the source is organised; auto recognises the layout. See docs/data.md."""
    exclude: str | None = Field(None, min_length=1)
    """Table of images to leave out: .csv with a column path, such as suspects.csv; a path or URI."""
    relabel: str | None = Field(None, min_length=1)
    """Table of images whose label changes: .csv with the columns path and new_label; a path or URI."""
    group: str | None = Field(None, min_length=1)
    """Images that belong together and stay on one side of the split: name:REGEX (text captured from the
    name), column:NAME of a table, exif:date, exif:camera, exif:serial, or duplicates (near-duplicates)."""
    validation_fraction: float = Field(0.2, gt=0.0, lt=1.0)
    """Fraction of each class that is held out of a source without a split of its own."""
    held_out: Literal["auto", "validation", "train"] = "auto"
    """Images that measure the model. auto uses the validation images, or else the test images. validation
    never reads test images; without validation images, a part of the training images is held out. train reads
    training images only, and holds out a part of them."""
    image_size: ImageSize = 128
    """Height and width in pixels of the input of the network, outside training crops: one number, or
    [height, width]."""
    channels: Literal[1, 3, 4] = 3
    """1 is grey, 3 is RGB with alpha blended over white, 4 is RGBA. 16-bit images keep their upper 8 bits."""
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    """How an image with another aspect ratio than image_size is resized."""
    interpolation: Literal["bilinear", "nearest", "bicubic"] = "bilinear"
    """bilinear and bicubic are antialiased; bicubic has a = -0.5 as in Pillow and PyTorch (with
    antialias=True), and is what most pretrained networks expect. ImageDataGenerator uses nearest."""
    crop_fraction: float = Field(1.0, ge=0.1, le=1.0)
    """With resize crop: fraction of the height and width of the largest crop that is kept. 0.875 with
    image_size 224 is the usual "resize to 256, center crop 224"."""
    denoise: DenoiseSpec | None = None
    """Removes noise from each image after resizing; see docs/images.md."""
    max_rejected: Fraction = 0.01
    """Fraction of damaged files above which the run stops."""
    cache_mib: int = Field(4096, ge=0)
    """Memory for decoded images in MiB; above it they go to a memory-mapped file on local disk."""
    shuffle_shards: Count = 8
    """With data in shards: number of shards whose images are shuffled together."""
    staged_mib: Count = 65_536
    """Local disk in MiB for shards fetched from a bucket."""
    max_image_pixels: Count = 100_000_000
    """Images that declare more pixels are rejected before they are decoded."""
    max_extracted_mib: Count = 65_536
    """Maximum size in MiB of an unpacked archive."""

    @field_validator("checksum", mode="before")
    @classmethod
    def _in_lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("group")
    @classmethod
    def _is_group(cls, value: str | None) -> str | None:
        if value is not None and (problem := _group_problem(value)):
            raise SettingError(
                f"data.group is not valid: {problem}.",
                "Use name:REGEX, column:NAME, exif:date, exif:camera, exif:serial or duplicates.",
                value,
            )
        return value

    @field_validator("crop_fraction")
    @classmethod
    def _crops(cls, value: float, others: ValidationInfo) -> float:
        is_cut = value != 1.0 and others.data.get("resize") in ("stretch", "pad")
        if is_cut and others.context != OPEN:
            raise SettingError(
                "data.crop_fraction requires data.resize crop.",
                "Set data.resize to crop, or data.crop_fraction to 1.0.",
                value,
            )
        return value

    @property
    def pixel_format(self) -> PixelFormat:
        """Conversion of an image to pixels."""
        height, width = sides_of(self.image_size)
        return PixelFormat(
            height, width, self.resize, self.interpolation, self.crop_fraction, self.channels, self.denoise
        )

    def describe_pixels(self) -> dict[str, Any]:
        """Return the settings in `PIXEL_SETTINGS` as JSON values.

        `denoise` is omitted if it is off, as in descriptions of earlier versions, which did not have it.
        """
        settings = self.model_dump(mode="json", include={*PIXEL_SETTINGS})
        return {key: value for key, value in settings.items() if key != "denoise" or value is not None}


ModelSpec = Annotated[PlainSpec | ResidualSpec | AirbenchSpec | PretrainedSpec, Field(discriminator="family")]


class EarlyStoppingSpec(Checked):
    """Stop when a held-out metric has not improved for several epochs. Off by default."""

    monitor: Literal["loss", "accuracy", "mean_average_precision"] = "loss"
    """Held-out metric. mean_average_precision needs data.labels multi, where accuracy is the exact match."""
    patience_epochs: Count = 5
    """Epochs without an improvement after which training stops."""
    min_change: NonNegative = 0.0
    """Smallest change of the metric that counts as an improvement."""


class CheckpointSpec(Checked):
    """When checkpoints are written, in addition to the end of each epoch and a graceful shutdown."""

    every_minutes: Positive | None = 5.0
    """Minutes between checkpoints; null turns this off."""
    every_steps: Count | None = None
    """Maximum number of steps that are repeated after a failure; a checkpoint starts after half of them."""


SCRATCH, LATEST, CHAMPION = "scratch", "latest", "champion"
"""Keywords for `train.start_from`, which is otherwise the folder of a run."""


class TrainSpec(Checked):
    """Length, numerics and hardware of the training."""

    epochs: Count = 20
    """Passes over the training images."""
    start_from: str = Field(SCRATCH, min_length=1)
    """Initial weights: scratch, latest, champion (scratch if there is none yet), or the folder of a finished
    run with the same network and classes."""
    finetune: FinetuneSpec | None = None
    """Fine-tuning phases of a pretrained backbone; for model.family pretrained only."""
    global_batch_size: Count = 32
    """Images per step, over all devices."""
    scale_batch: bool = False
    """Makes global_batch_size the batch of one device, and scales the learning rate: linearly for SGD, by the
    square root for the other optimizers."""
    devices: str = Field("auto", pattern=r"^(auto|tpu|(cpu|gpu)(:[1-9][0-9]{0,3})?)$")
    """auto uses all devices of each host; gpu:2 the first two GPUs, cpu:4 four logical CPU devices."""
    meet_seconds: Positive = 600.0
    """Rendezvous timeout: how long the processes of a run on several hosts wait for each other."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision. float32 disables TF32 on GPUs; auto uses bfloat16 where the hardware has it."""
    xla: Literal["auto"] | bool = "auto"
    """Compile the train step with XLA; auto does so on a single GPU."""
    steps_per_call: Literal["auto"] | Count = "auto"
    """Train steps per call of the compiled function; auto uses as many as take half a second."""
    deterministic: bool = False
    """Use deterministic operations: the same bits on machines of one kind."""
    class_weights: Literal["none", "balanced"] | dict[str, Positive] = "none"
    """Weights of the classes in the loss. balanced gives all classes the same total weight; {name: 3.0} sets
    the weight of single classes."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    """Label smoothing of the training loss."""
    ema_decay: float = Field(0.0, ge=0.0, lt=1.0)
    """Decay of the exponential moving average of the weights, which is evaluated and exported; 0 is off."""
    validate_every_epochs: Count = 1
    """Epochs between evaluations on the held-out images."""
    keep: Literal["auto", "last", "best"] = "auto"
    """Epoch whose weights are evaluated and exported; auto is best with early stopping, otherwise last."""
    early_stopping: EarlyStoppingSpec | None = None
    time_budget_seconds: Positive | None = None
    """Training ends after the epoch that exceeds this time; the schedule is not changed."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    grace_seconds: Positive = 10.0
    """Grace period: the time between SIGTERM and the end of the process."""
    max_stalled_starts: Count = 5
    """Maximum number of restarts without a new checkpoint; the next one ends with exit code 70."""
    log_interval_seconds: Positive = 30.0
    """Seconds between lines of progress where the output is not a terminal."""
    profile: str | None = Field(None, pattern=r"^[1-9][0-9]{0,8}-[1-9][0-9]{0,8}$")
    """FIRST-LAST, such as 10-20: steps, counted from 1, for which a TensorBoard profile is written."""

    @cross_check
    def _profile_ordered(self) -> TrainSpec:
        if self.profiled_steps is not None and self.profiled_steps[0] > self.profiled_steps[1]:
            raise SettingError(
                "train.profile must be FIRST-LAST with the smaller step first.",
                "Write it as in 10-20.",
                self.profile,
            )
        return self

    @property
    def profiled_steps(self) -> tuple[int, int] | None:
        """First and last step of `profile`, counted from 1; None if it is not set."""
        if self.profile is None:
            return None
        first, _, last = self.profile.partition("-")
        return int(first), int(last)

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best epoch, not of the last one, are evaluated and exported."""
        return self.keep == "best" or (self.keep == "auto" and self.early_stopping is not None)


class PublishSpec(Checked):
    """Release of a finished run as champion, and retention of older runs."""

    skip_unchanged: bool = False
    """Skip the run when neither its data nor its spec has changed since the newest finished run."""
    release: bool = False
    """Challenge the champion once the run is finished."""
    test_data: str | None = Field(None, min_length=1)
    """Images that decide a release; by default the held-out images of the run. If it is the source of the
    run's own data, the test images in it decide, or else the validation images."""
    min_gain: Fraction = 0.0
    """Minimum gain in accuracy of a challenger, in addition to statistical significance."""
    max_class_loss: Fraction = 0.05
    """Maximum loss of recall of any class."""
    keep_runs: Count | None = None
    """Newest finished runs to keep, besides the champion and the previous champion; null keeps all."""
    usd_per_hour: NonNegative | None = None
    """Price of all machines per hour, for comparisons of runs; `trainer submit` sets the list price."""


class ExportSpec(Checked):
    """The exported model."""

    reject_below: float | None = Field(0.05, ge=0.0, lt=1.0)
    """Significance level of the rejection of images that are unlike the training images: about this fraction
    of images like them is rejected too. 0 computes the p-values and rejects nothing; null exports a model
    without them. See docs/unknown-images.md."""

    @field_validator("reject_below", mode="before")
    @classmethod
    def _accepts_something(cls, value: Any) -> Any:
        if value in (1, 1.0) and not isinstance(value, bool):
            raise SettingError(
                "export.reject_below 1 would reject every image.",
                "Use a small level, such as 0.05, or null for a model without rejection.",
                value,
            )
        return value


class RunSpec(Checked):
    """A complete run: data, model, training, export and publication."""

    recipe: str | None = None
    """Name of the recipe that the other settings override."""
    choose: Literal["none", "auto", "fast", "best"] = "none"
    """Goal for which unset settings are chosen from the data when the run begins."""
    output: str = Field("runs", min_length=1)
    """Folder of the runs, local or gs://."""
    run_name: str | None = Field(None, pattern=f"^{RUN_NAME}$")
    """Name of the run: letters, digits, dots, underscores and hyphens. A name is chosen if it is not set."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the initial weights, the order of the images, augmentation and dropout."""
    data: DataSpec = DataSpec()
    augment: AugmentSpec = AugmentSpec()
    model: ModelSpec = ResidualSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    train: TrainSpec = TrainSpec()
    export: ExportSpec = ExportSpec()
    publish: PublishSpec = PublishSpec()

    @property
    def finetune(self) -> FinetuneSpec | None:
        """Fine-tuning settings of the pretrained backbone; None for a network trained from scratch."""
        if not isinstance(self.model, PretrainedSpec) or self.model.weights == NO_WEIGHTS:
            return None
        return self.train.finetune or FinetuneSpec()

    @property
    def is_frozen(self) -> bool:
        """Whether the pretrained backbone is frozen in all epochs."""
        return self.finetune is not None and self.finetune.frozen >= self.train.epochs

    @property
    def has_depthwise(self) -> bool:
        """Whether the network has depthwise convolutions."""
        return isinstance(self.model, PretrainedSpec) and self.model.backbone != "resnet50v2"

    @cross_check
    def _phases_fit(self) -> RunSpec:
        if self.train.finetune is not None and not isinstance(self.model, PretrainedSpec):
            raise SettingError(
                "train.finetune requires model.family pretrained.",
                "Set model.family to pretrained, or train.finetune to null.",
                f"model.family {self.model.family}",
            )
        if self.train.finetune is not None and self.finetune is None:
            raise SettingError(
                "train.finetune requires pretrained weights.",
                "Set train.finetune to null, or set model.weights.",
                f"model.weights {NO_WEIGHTS}",
            )
        if (finetune := self.finetune) is None:
            return self
        if finetune.first_epochs > self.train.epochs:
            raise SettingError(
                "train.finetune has more frozen and last-stage epochs than train.epochs.",
                "Increase train.epochs, or reduce the epochs of train.finetune.",
                f"{finetune.first_epochs} epochs of train.finetune, train.epochs {self.train.epochs}",
            )
        return self

    @cross_check
    def _optimizer_fits(self) -> RunSpec:
        if self.optimizer.unit_kernels and isinstance(self.model, PretrainedSpec):
            raise SettingError(
                "optimizer.unit_kernels cannot be used with model.family pretrained: it changes the norms "
                "of the pretrained kernels.",
                "Set optimizer.unit_kernels to false.",
                "unit_kernels true",
            )
        return self

    @cross_check
    def _sizes_fit(self) -> RunSpec:
        crop, size = self.augment.crop, min(sides_of(self.data.image_size))
        sides = {size} if crop is None else {size, crop.size or size, crop.first_size or crop.size or size}
        if crop is not None and (crop.first_size or 0) > (crop.size or size):
            raise SettingError(
                "augment.crop.first_size must not be larger than augment.crop.size, because crops grow.",
                "Reduce first_size, or increase size.",
                f"first_size {crop.first_size}, size {crop.size or size}",
            )
        if isinstance(self.model, PlainSpec):
            self._require_plain_sizes(self.model, sides, size)
        if isinstance(self.model, PretrainedSpec) and min(sides) < LEAST_SIDE:
            raise SettingError(
                f"model.family pretrained requires images of at least {LEAST_SIDE} pixels per side.",
                "Increase data.image_size, and the sizes of augment.crop if it is used.",
                min(sides),
            )
        if isinstance(self.model, AirbenchSpec) and min(sides) < self.model.least_side:
            raise SettingError(
                f"{len(self.model.filters)} groups in model.filters require images and crops of at least "
                f"{self.model.least_side} pixels per side.",
                "Increase data.image_size and the sizes of augment.crop, or remove groups.",
                min(sides),
            )
        return self

    def _require_plain_sizes(self, model: PlainSpec, sides: set[int], size: int) -> None:
        """Raise SettingError for images or crops that the plain network cannot process."""
        if len(sides) > 1:
            raise SettingError(
                "Crops of another size than data.image_size require a network that accepts any size.",
                "Set model.family to residual, or remove the sizes of augment.crop.",
                f"model.family plain, sides {sorted(sides)}",
            )
        if model.last_side(size) < 1:
            raise SettingError(
                f"data.image_size is too small for the {len(model.filters)} layers of model.filters.",
                "Increase data.image_size, or remove layers.",
                size,
            )

    @cross_check
    def _labels_fit(self) -> RunSpec:
        stopping, is_multi = self.train.early_stopping, self.data.labels == "multi"
        if is_multi and isinstance(self.model, PlainSpec) and self.model.binary_unit:
            raise SettingError(
                "model.binary_unit requires data.labels single, because multi has one unit per label.",
                "Set model.binary_unit to false.",
                "data.labels multi",
            )
        if not is_multi and stopping is not None and stopping.monitor == "mean_average_precision":
            raise SettingError(
                "train.early_stopping.monitor=mean_average_precision requires data.labels=multi.",
                "Set monitor to loss or accuracy.",
                "data.labels single",
            )
        return self

    @cross_check
    def _xla_fits(self) -> RunSpec:
        if self.train.xla is True and self.augment.rotate_degrees:
            raise SettingError(
                "augment.rotate_degrees cannot be compiled with XLA.",
                "Set train.xla to auto, or augment.rotate_degrees to 0.",
                f"train.xla true, rotate_degrees {self.augment.rotate_degrees:g}",
            )
        return self

    @field_validator("run_name")
    @classmethod
    def _not_reserved(cls, value: str | None) -> str | None:
        if value in ("latest", "champion", "releases"):
            raise SettingError(
                f"run_name cannot be {value}, the name of a pointer or folder in the output.",
                "Choose another name.",
                value,
            )
        return value

    @field_validator("model", mode="before")
    @classmethod
    def _default_family(cls, value: Any) -> Any:
        if isinstance(value, dict) and "family" not in value:
            is_pretrained = not {"backbone", "weights"}.isdisjoint(value)
            return {"family": "pretrained" if is_pretrained else "residual", **value}
        return value
