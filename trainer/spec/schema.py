"""The run as frozen, validated values.

In: plain mappings, as YAML gives them. Out: a `RunSpec`. Every value is checked strictly
(no string becomes a number), and an unknown key is an error. Nothing here reads a file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from trainer.spec.airbench import AirbenchSpec
from trainer.spec.augment import AugmentSpec
from trainer.spec.checked import Checked, Count, Fraction, NonNegative, Positive
from trainer.spec.finetune import FinetuneSpec
from trainer.spec.networks import PlainSpec, ResidualSpec
from trainer.spec.optimizer import OptimizerSpec
from trainer.spec.pixels import ImageSize, PixelFormat, sides_of
from trainer.spec.pretrained import LEAST_SIDE, NO_WEIGHTS, PretrainedSpec
from trainer.spec.publish import PublishSpec

RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""What a run may be called."""


class DataSpec(Checked):
    """Where the images come from and how they become pixels."""

    source: str = Field("embedded:digits", min_length=1)
    """A folder, an archive, a file:// or https:// URL, or embedded:digits."""
    checksum: str | None = Field(None, pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")
    """What a downloaded or local archive must hash to."""
    labels: Literal["single", "multi"] = "single"
    """multi: any number of labels an image, which a table lists; see docs/several-labels.md."""
    threshold_fraction: float = Field(0.1, ge=0.0, lt=1.0)
    """Of data.labels multi: the share of the training images that choose the threshold of each label and are
    not trained on; 0 chooses them on the training images themselves."""
    layout: Literal["auto", "folders", "import", "tfrecord", "webdataset", "parquet", "cifar", "shards"] = (
        "auto"
    )
    validation_fraction: float = Field(0.2, gt=0.0, lt=1.0)
    """The share of each class held out of a source that has no split of its own."""
    held_out: Literal["auto", "validation", "train"] = "auto"
    """Which images measure the model: auto takes validation images, or else test images. validation never
    reads test images; without validation images, a part of the training images is held out. train reads
    training images only, and holds out a part of them."""
    image_size: ImageSize = 128
    """Height and width, in pixels, of every image that the network sees outside training crops: one number,
    or [height, width]."""
    channels: Literal[1, 3, 4] = 3
    """1 is grey, 3 is RGB with alpha laid over white, 4 is RGBA. 16-bit images keep their upper 8 bits."""
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    """How an image of other proportions than image_size gets these."""
    interpolation: Literal["bilinear", "nearest", "bicubic"] = "bilinear"
    """bilinear and bicubic are antialiased; bicubic has a = -0.5 as in Pillow and PyTorch (with
    antialias=True), and is what most pretrained networks expect. nearest is what ImageDataGenerator does."""
    crop_fraction: float = Field(1.0, ge=0.1, le=1.0)
    """With resize crop: which share of the height and width of the largest crop is kept. 0.875 with
    image_size 224 is the usual "resize to 256, keep the middle 224"."""
    max_rejected: Fraction = 0.01
    """The share of damaged files above which the run stops."""
    cache_mib: int = Field(4096, ge=0)
    """Decoded images above this budget go to a memory-mapped file on local disk."""
    shuffle_shards: Count = 8
    """Of data in shards: among the images of how many shards each epoch shuffles."""
    staged_mib: Count = 65_536
    """Local disk that shards of a bucket may take."""
    max_image_pixels: Count = 100_000_000
    """Images that declare more pixels than this are rejected before they are decoded."""
    max_extracted_mib: Count = 65_536
    """The most that an archive may unpack to."""

    @field_validator("checksum", mode="before")
    @classmethod
    def _in_lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("crop_fraction")
    @classmethod
    def _crops(cls, value: float, others: ValidationInfo) -> float:
        if value != 1.0 and others.data.get("resize") in ("stretch", "pad"):
            raise ValueError("a part of an image is kept with data.resize crop only")
        return value

    @property
    def pixel_format(self) -> PixelFormat:
        """How an image becomes pixels."""
        height, width = sides_of(self.image_size)
        return PixelFormat(height, width, self.resize, self.interpolation, self.crop_fraction, self.channels)


ModelSpec = Annotated[PlainSpec | ResidualSpec | AirbenchSpec | PretrainedSpec, Field(discriminator="family")]


class EarlyStoppingSpec(Checked):
    """Stop when the held-out loss or accuracy has not improved for a while."""

    monitor: Literal["loss", "accuracy", "mean_average_precision"] = "loss"
    """mean_average_precision is of data.labels multi, where accuracy counts images without a mistake."""
    patience_epochs: Count = 5
    min_change: NonNegative = 0.0


class CheckpointSpec(Checked):
    """When the training state is saved, beside the end of each epoch and a request to stop."""

    every_minutes: Positive | None = 5.0
    every_steps: Count | None = None
    """The most steps that are done twice; one is begun after half of them, to be safe by then."""


SCRATCH, LATEST, CHAMPION = "scratch", "latest", "champion"
"""What `train.start_from` may say besides a run's place."""


class TrainSpec(Checked):
    """How long, how exact and on what."""

    epochs: Count = 20
    start_from: str = Field(SCRATCH, min_length=1)
    """Whose weights it begins with: fresh ones, those of the latest run or of the champion, or of a run's."""
    finetune: FinetuneSpec | None = None
    """How a pretrained backbone is trained; of model.family pretrained alone."""
    global_batch_size: Count = 32
    """Images in a step, whatever the number of devices that share them."""
    scale_batch: bool = False
    """With it global_batch_size is of each device, and the learning rate grows by the optimizer's rule."""
    devices: str = Field("auto", pattern=r"^(auto|tpu|(cpu|gpu)(:[1-9][0-9]{0,3})?)$")
    """auto is all that each host has; gpu:2 the first two, cpu:4 the CPU as four devices."""
    meet_seconds: Positive = 600.0
    """How long the processes of a run on several hosts wait for each other at the start."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """float32 is that in products too, without TF32 on GPUs; auto is bfloat16 where it is faster."""
    xla: Literal["auto"] | bool = "auto"
    steps_per_call: Literal["auto"] | Count = "auto"
    deterministic: bool = False
    class_weights: Literal["none", "balanced"] | dict[str, Positive] = "none"
    """balanced weighs all classes alike, however many images each has; {name: 3.0} weighs single ones."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    ema_decay: float = Field(0.0, ge=0.0, lt=1.0)
    """The weights that are evaluated and exported are a moving average; 0 is off."""
    validate_every_epochs: Count = 1
    keep: Literal["auto", "last", "best"] = "auto"
    """Which epoch's weights are evaluated and exported; auto is best with early stopping, else last."""
    early_stopping: EarlyStoppingSpec | None = None
    time_budget_seconds: Positive | None = None
    """Training ends after the epoch that passes this; the schedule is not changed."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    grace_seconds: Positive = 10.0
    """The time between a request to stop and the end of the process."""
    max_stalled_starts: Count = 5
    """How often a run may be started again without a new checkpoint before it is given up."""
    log_interval_seconds: Positive = 30.0
    profile: str | None = Field(None, pattern=r"^[1-9][0-9]{0,8}-[1-9][0-9]{0,8}$")
    """FIRST-LAST: of these steps, counted from 1, a profile for TensorBoard is written."""

    @model_validator(mode="after")
    def _profile_ordered(self) -> TrainSpec:
        if self.profiled_steps is not None and self.profiled_steps[0] > self.profiled_steps[1]:
            raise ValueError("profile is FIRST-LAST, as 10-20")
        return self

    @property
    def profiled_steps(self) -> tuple[int, int] | None:
        """The first and the last step of `profile`, from 1; None without one."""
        if self.profile is None:
            return None
        first, _, last = self.profile.partition("-")
        return int(first), int(last)

    @property
    def keeps_best(self) -> bool:
        """Whether the best epoch's weights are evaluated and exported, not the last one's."""
        return self.keep == "best" or (self.keep == "auto" and self.early_stopping is not None)


class RunSpec(Checked):
    """One run, whole: what to train on, what to train, and how."""

    recipe: str | None = None
    """The recipe that this started from; a label."""
    choose: Literal["none", "auto", "fast", "best"] = "none"
    """For which goal the settings that are not given are chosen from the data, when the run begins."""
    output: str = Field("runs", min_length=1)
    run_name: str | None = Field(None, pattern=f"^{RUN_NAME}$")
    seed: int = Field(0, ge=0, lt=2**31)
    data: DataSpec = DataSpec()
    augment: AugmentSpec = AugmentSpec()
    model: ModelSpec = ResidualSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    train: TrainSpec = TrainSpec()
    publish: PublishSpec = PublishSpec()

    @property
    def finetune(self) -> FinetuneSpec | None:
        """How the pretrained backbone is trained; None for a network from scratch."""
        if not isinstance(self.model, PretrainedSpec) or self.model.weights == NO_WEIGHTS:
            return None
        return self.train.finetune or FinetuneSpec()

    @property
    def has_depthwise(self) -> bool:
        """Whether the network has depthwise convolutions."""
        return isinstance(self.model, PretrainedSpec) and self.model.backbone != "resnet50v2"

    @model_validator(mode="after")
    def _phases_fit(self) -> RunSpec:
        if self.train.finetune is not None and not isinstance(self.model, PretrainedSpec):
            raise ValueError("train.finetune is of model.family pretrained")
        if self.train.finetune is not None and self.finetune is None:
            raise ValueError(
                "train.finetune is for pretrained weights: with model.weights none set train.finetune to "
                f"null, or give other weights. Received: model.weights {NO_WEIGHTS}"
            )
        if (finetune := self.finetune) is None:
            return self
        if finetune.first_epochs > self.train.epochs:
            raise ValueError("train.finetune has more frozen and last-stage epochs than train.epochs")
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> RunSpec:
        if self.optimizer.unit_kernels and isinstance(self.model, PretrainedSpec):
            raise ValueError(
                "optimizer.unit_kernels changes the norms of pretrained kernels, which their normalisation "
                "does not follow; set it to false with model.family pretrained. Received: unit_kernels true"
            )
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> RunSpec:
        crop, size = self.augment.crop, min(sides_of(self.data.image_size))
        sides = {size} if crop is None else {size, crop.size or size, crop.first_size or crop.size or size}
        if crop is not None and (crop.first_size or 0) > (crop.size or size):
            raise ValueError("augment.crop: crops grow: first_size can't be above size")
        if isinstance(self.model, PlainSpec):
            if len(sides) > 1:
                raise ValueError("crops of another size than data.image_size need model.family residual")
            if self.model.last_side(size) < 1:
                raise ValueError("data.image_size is too small for so many layers in model.filters")
        if isinstance(self.model, PretrainedSpec) and min(sides) < LEAST_SIDE:
            raise ValueError(
                f"model.family pretrained takes pictures of at least {LEAST_SIDE} pixels a side; set "
                f"data.image_size, and augment.crop where it is used. Received: {min(sides)}"
            )
        if isinstance(self.model, AirbenchSpec) and min(sides) < self.model.least_side:
            raise ValueError(
                f"images and crops need {self.model.least_side} pixels for so many groups in model.filters"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit(self) -> RunSpec:
        stopping, is_multi = self.train.early_stopping, self.data.labels == "multi"
        if is_multi and isinstance(self.model, PlainSpec) and self.model.binary_unit:
            raise ValueError("model.binary_unit is of data.labels single; multi has a unit a label")
        if not is_multi and stopping is not None and stopping.monitor == "mean_average_precision":
            raise ValueError("train.early_stopping.monitor mean_average_precision needs data.labels multi")
        return self

    @model_validator(mode="after")
    def _xla_can_do_it(self) -> RunSpec:
        if self.train.xla is True and self.augment.rotate_degrees:
            raise ValueError("train.xla true has no kernel for augment.rotate_degrees; leave one of them out")
        return self

    @field_validator("run_name")
    @classmethod
    def _not_the_pointer(cls, value: str | None) -> str | None:
        if value in ("latest", "champion", "releases"):
            raise ValueError("this is the name of a pointer, or of what is kept beside the runs")
        return value

    @field_validator("model", mode="before")
    @classmethod
    def _default_family(cls, value: Any) -> Any:
        if isinstance(value, dict) and "family" not in value:
            return {"family": "residual", **value}
        return value
