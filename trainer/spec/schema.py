"""The run as frozen, validated values.

In: plain mappings, as YAML gives them. Out: a `RunSpec`. Every value is checked strictly
(no string becomes a number), and an unknown key is an error. Nothing here reads a file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trainer.spec.airbench import AirbenchSpec
from trainer.spec.augment import AugmentSpec
from trainer.spec.checked import Blocks, Checked, Count, Filters, Fraction, NonNegative, Positive
from trainer.spec.publish import PublishSpec

RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""What a run may be called."""


class DataSpec(Checked):
    """Where the images come from and how they become pixels."""

    source: str = Field("embedded:digits", min_length=1)
    """A folder, an archive, a file:// or https:// URL, or embedded:digits."""
    checksum: str | None = Field(None, pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")
    """What a downloaded or local archive must hash to."""
    layout: Literal["auto", "folders", "import", "tfrecord", "webdataset", "parquet", "cifar", "shards"] = (
        "auto"
    )
    validation_fraction: float = Field(0.2, gt=0.0, lt=1.0)
    """The share of each class held out of a source that has no split of its own."""
    image_size: int = Field(128, ge=8, le=2048)
    """Height and width, in pixels, of every image that the network sees outside training crops."""
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    """How an image that is not square becomes square."""
    interpolation: Literal["bilinear", "nearest"] = "bilinear"
    """bilinear is antialiased; nearest is what ImageDataGenerator does."""
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


class PlainSpec(Checked):
    """3 x 3 convolutions with ReLU and 2 x 2 max pooling, then dense layers."""

    family: Literal["plain"] = "plain"
    filters: tuple[Filters, ...] = Field((16, 32, 64), strict=False, min_length=1)
    pool_last: bool = True
    """Whether the last convolution is pooled as well."""
    dense_units: tuple[Count, ...] = Field((), strict=False)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    binary_unit: bool = False
    """With two classes: one sigmoid unit instead of two softmax units (same loss, same gradients)."""
    average_mirror: bool = False
    """Answer with the mean over the picture and its mirror image, at twice the cost of an answer."""

    @property
    def pools(self) -> tuple[bool, ...]:
        """Whether each convolution is pooled."""
        return (True,) * (len(self.filters) - 1) + (self.pool_last,)

    def last_side(self, side: int) -> int:
        """Return the side of the last feature map for images of `side` pixels; there is none if below 1."""
        for is_pooled in self.pools:
            side = (side - 2) // 2 if is_pooled else side - 2
        return side


class ResidualSpec(Checked):
    """A residual network with batch normalisation and global average pooling."""

    family: Literal["residual"] = "residual"
    stem_filters: Filters = 32
    stem_stride: int = Field(2, ge=1, le=4)
    filters: tuple[Filters, ...] = Field((64, 128, 256), strict=False, min_length=1)
    """One number a stage; each stage halves height and width."""
    blocks: tuple[Blocks, ...] = Field((2, 2, 2), strict=False, min_length=1)
    dropout: float = Field(0.2, ge=0.0, lt=1.0)
    stochastic_depth: float = Field(0.0, ge=0.0, lt=1.0)
    """The probability that the last block is skipped; earlier ones less, linearly."""
    average_mirror: bool = False
    """Answer with the mean over the picture and its mirror image, at twice the cost of an answer."""

    @model_validator(mode="after")
    def _stages(self) -> ResidualSpec:
        if len(self.filters) != len(self.blocks):
            raise ValueError("filters and blocks need one number for each stage")
        return self


ModelSpec = Annotated[PlainSpec | ResidualSpec | AirbenchSpec, Field(discriminator="family")]


class OptimizerSpec(Checked):
    """The optimizer and its learning-rate schedule."""

    name: Literal["sgd", "rmsprop", "adam", "adamw", "muon"] = "adamw"
    """muon orthogonalises the updates of hidden kernels (Jordan 2024); AdamW trains all other weights."""
    learning_rate: Positive = 0.001
    momentum: float = Field(0.0, ge=0.0, lt=1.0)
    """Of sgd, rmsprop and muon, whose default is 0.95."""
    nesterov: bool = False
    """Of sgd and muon, whose default is true."""
    rest_rate: Positive | None = None
    """Of muon: the learning rate of biases, normalisation and the last layer; learning_rate if not given."""
    unit_kernels: bool = False
    """Of muon: kernels keep the norm of one unit per filter, and a step is learning_rate of that norm."""
    weight_decay: NonNegative = 0.0
    """Decoupled; kernels only, never biases or normalisation."""
    clip_norm: Positive | None = None
    """The largest global norm of the gradient, after it is summed over all replicas."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_epochs: NonNegative = 0.0
    final_fraction: Fraction = 0.0
    """The share of the learning rate at which linear and cosine end."""

    @model_validator(mode="before")
    @classmethod
    def _momentum_of_muon(cls, value: Any) -> Any:
        is_muon = isinstance(value, dict) and value.get("name") == "muon"
        return {"momentum": 0.95, "nesterov": True, **value} if is_muon else value

    @model_validator(mode="after")
    def _used(self) -> OptimizerSpec:
        if (self.momentum or self.nesterov) and self.name not in ("sgd", "rmsprop", "muon"):
            raise ValueError(f"momentum and nesterov are of sgd, rmsprop and muon, not of {self.name}")
        if self.nesterov and self.name == "rmsprop":
            raise ValueError("nesterov is of sgd and muon, not of rmsprop")
        if (self.rest_rate or self.unit_kernels) and self.name != "muon":
            raise ValueError(f"rest_rate and unit_kernels are of muon, not of {self.name}")
        if self.final_fraction and self.schedule == "constant":
            raise ValueError("final_fraction is where a linear or cosine schedule ends; constant has no end")
        return self


USUAL_RATES = {"sgd": 0.05, "rmsprop": 0.001, "adam": 0.001, "adamw": 0.001, "muon": 0.001}
"""The learning rate that a network of this program usually trains well with, by optimizer."""


class EarlyStoppingSpec(Checked):
    """Stop when the held-out loss or accuracy has not improved for a while."""

    monitor: Literal["loss", "accuracy"] = "loss"
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
    output: str = Field("runs", min_length=1)
    run_name: str | None = Field(None, pattern=f"^{RUN_NAME}$")
    seed: int = Field(0, ge=0, lt=2**31)
    data: DataSpec = DataSpec()
    augment: AugmentSpec = AugmentSpec()
    model: ModelSpec = ResidualSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    train: TrainSpec = TrainSpec()
    publish: PublishSpec = PublishSpec()

    @model_validator(mode="after")
    def _sizes_fit(self) -> RunSpec:
        crop, size = self.augment.crop, self.data.image_size
        sides = {size} if crop is None else {size, crop.size or size, crop.first_size or crop.size or size}
        if crop is not None and (crop.first_size or 0) > (crop.size or size):
            raise ValueError("augment.crop: crops grow: first_size can't be above size")
        if isinstance(self.model, PlainSpec):
            if len(sides) > 1:
                raise ValueError("crops of another size than data.image_size need model.family residual")
            if self.model.last_side(size) < 1:
                raise ValueError("data.image_size is too small for so many layers in model.filters")
        if isinstance(self.model, AirbenchSpec) and min(sides) < self.model.least_side:
            raise ValueError(
                f"images and crops need {self.model.least_side} pixels for so many groups in model.filters"
            )
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
