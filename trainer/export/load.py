"""Loader of exported models, which checks the operations in a SavedModel first.

A folder that was not exported by this package, or in a format that it no longer reads, is rejected.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from trainer.data.header import reason_of_failure
from trainer.errors import DataError, UsageError
from trainer.export.served import FORMAT_VERSION, MULTI_LABEL_VERSION, SINGLE_LABEL_VERSION
from trainer.spec import PIXEL_SETTINGS, DataSpec

_MATH = """
    Abs AccumulateNV2 Acos Acosh Add AddN AddV2 All Any ApproximateEqual ArgMax ArgMin Asin Asinh Atan
    Atan2 Atanh BatchMatMul BatchMatMulV2 BatchMatMulV3 BesselI0 BesselI0e BesselI1 BesselI1e Betainc
    Bincount BitwiseAnd BitwiseOr BitwiseXor Bucketize Cast Ceil ClipByValue Cos Cosh Cross Cumprod Cumsum
    CumulativeLogsumexp DenseBincount Digamma Div DivNoNan Einsum Equal Erf Erfc Erfinv Exp Expm1 Floor
    FloorDiv FloorMod Greater GreaterEqual HistogramFixedWidth Igamma Igammac InTopKV2 Inv Invert InvGrad
    IsFinite IsInf IsNan L2Loss LeftShift Less LessEqual Lgamma Log Log1p LogicalAnd LogicalNot LogicalOr
    LogSoftmax MatMul Max Maximum Mean Min Minimum Mod Mul MulNoNan Ndtri Neg NextAfter NotEqual Polygamma
    PopulationCount Pow Prod RaggedBincount Range RealDiv Reciprocal ReciprocalGrad RightShift Rint Round
    Rsqrt RsqrtGrad SegmentMax SegmentMaxV2 SegmentMean SegmentMin SegmentMinV2 SegmentProd SegmentProdV2
    SegmentSum SegmentSumV2 Select SelectV2 Sigmoid SigmoidGrad Sign Sin Sinh Softplus SoftplusGrad Sqrt
    SqrtGrad Square SquaredDifference Sub Sum Tan Tanh TanhGrad TopK TopKV2 TruncateDiv TruncateMod
    UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum Xdivy Xlog1py Xlogy Zeta
"""
_ARRAYS = """
    BatchToSpace BatchToSpaceND Bitcast BroadcastArgs BroadcastTo CheckNumerics Concat ConcatV2 Const
    DepthToSpace Diag DiagPart DynamicPartition DynamicStitch EnsureShape ExpandDims ExtractImagePatches
    Fill Gather GatherNd GatherV2 Identity IdentityN InvertPermutation LinSpace ListDiff LowerBound
    MatrixBandPart MatrixDiag MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3
    MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3 MirrorPad NoOp OneHot OnesLike Pack Pad PadV2
    ParallelConcat ParallelDynamicStitch Placeholder PlaceholderV2 PlaceholderWithDefault PreventGradient
    Rank Reshape ResourceGather ResourceGatherNd Reverse ReverseSequence ReverseV2 Roll ScatterNd
    ScatterNdNonAliasingAdd Shape ShapeN Size Slice Snapshot SpaceToBatch SpaceToBatchND SpaceToDepth
    Split SplitV Squeeze StopGradient StridedSlice TensorScatterAdd TensorScatterMax TensorScatterMin
    TensorScatterSub TensorScatterUpdate TensorStridedSliceUpdate Tile Transpose Unique UniqueV2
    UniqueWithCounts UniqueWithCountsV2 Unpack UnravelIndex UpperBound Where ZerosLike
"""
_NETWORKS = """
    AvgPool AvgPool3D BatchNormWithGlobalNormalization BiasAdd BiasAddV1 Conv Conv2D Conv2DBackpropInput
    Conv3D Conv3DBackpropInputV2 DepthwiseConv2dNative Dilation2D Elu FakeQuantWithMinMaxArgs
    FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel FractionalAvgPool FractionalMaxPool
    FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 LeakyRelu LRN MaxPool MaxPool3D MaxPoolV2
    MaxPoolWithArgmax QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 Relu Relu6
    Selu Softmax Softsign
"""
_IMAGES = """
    AdjustContrastv2 AdjustHue AdjustSaturation CropAndResize DecodeAndCropJpeg DecodeBmp DecodeGif
    DecodeImage DecodeJpeg DecodePaddedRaw DecodePng DecodeRaw DecodeWebP EncodeJpeg EncodePng
    ExtractGlimpseV2 ExtractJpegShape HSVToRGB ImageProjectiveTransformV2 ImageProjectiveTransformV3
    ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor RGBToHSV ScaleAndTranslate
"""
_STRINGS = """
    AsString DecodeBase64 DecodeCompressed EncodeBase64 ReduceJoin RegexFullMatch RegexReplace
    StaticRegexFullMatch StaticRegexReplace StringFormat StringJoin StringLength StringLower StringSplit
    StringSplitV2 StringStrip StringToHashBucketFast StringToNumber StringUpper Substr UnicodeDecode
    UnicodeEncode UnicodeTranscode UnsortedSegmentJoin
"""
_CONTROL = """
    Assert Case EmptyTensorList Enter Exit If LoopCond Merge NextIteration PartitionedCall
    StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile Switch TensorListConcatV2
    TensorListElementShape TensorListFromTensor TensorListGather TensorListGetItem TensorListLength
    TensorListPopBack TensorListPushBack TensorListReserve TensorListResize TensorListScatterV2
    TensorListSetItem TensorListSplit TensorListStack While
"""
_VARIABLES = """
    AssignAddVariableOp AssignSubVariableOp AssignVariableOp DestroyResourceOp DisableCopyOnRead
    ReadVariableOp VarHandleOp VariableShape VarIsInitializedOp
"""
_PIPELINES = """
    BatchDatasetV2 ConcatenateDataset DatasetToSingleElement IgnoreErrorsDataset MapDataset OptionsDataset
    ParallelMapDatasetV2 TensorDataset TensorSliceDataset
"""
"""The operations of `trainer.data.decode_batch`. Their elements are tensors of the graph, and the functions
that they call belong to the SavedModel and are checked like all others. They do not include datasets that
read files (TFRecordDataset), write files (CacheDatasetV2, SaveDatasetV2), call Python (GeneratorDataset) or
use the network (DataServiceDatasetV4)."""
_RANDOM = """
    Multinomial RandomGamma RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt
    StatelessMultinomial StatelessRandomGetAlg StatelessRandomGetKeyCounter
    StatelessRandomGetKeyCounterAlg StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomUniform
    StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformV2
    StatelessTruncatedNormal StatelessTruncatedNormalV2 TruncatedNormal
"""
COMPUTING = frozenset(
    " ".join(
        (_MATH, _ARRAYS, _NETWORKS, _IMAGES, _STRINGS, _CONTROL, _VARIABLES, _PIPELINES, _RANDOM)
    ).split()
)
"""Names as registered by TensorFlow. Operations that are not listed may be harmless too; they have not been
reviewed."""
SAVING = frozenset(("MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"))
"""Operations that TensorFlow adds to each SavedModel to save and restore its variables."""
_MOST_NAMED = 5
_UNSAFE_REMEDY = "If you trust the author of the model, add --trust."
_ATTRIBUTES_OF_SAVER = {"_construction_context", "_input_shapes"}
"""Attributes of the functions that TensorFlow generates to save and restore variables."""


def require_computing(folder: Path) -> None:
    """Raise UsageError if the SavedModel in `folder` may do more than compute, DataError if it is damaged.

    A SavedModel is a program: TensorFlow also has operations that read and write files, open connections and
    call Python. All of its functions are checked, called or not. A SavedModel of TensorFlow 1 is rejected
    too, because its operations run while it is loaded.
    """
    unknown: set[str] = set()
    for graph in _parse(folder).meta_graphs:
        if not graph.object_graph_def.nodes:
            raise UsageError(
                "The model is a TensorFlow 1 SavedModel, whose operations run while it is loaded.",
                _UNSAFE_REMEDY,
                received=folder,
            )
        unknown |= _operations(graph)
    if unknown:
        raise UsageError(
            "The model has operations that may do more than compute, such as read and write files.",
            _UNSAFE_REMEDY,
            received=f"{', '.join(sorted(unknown)[:_MOST_NAMED])} in {folder}",
        )


def _parse(folder: Path) -> Any:
    path, model = folder / "saved_model.pb", saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise DataError(
            "The model is damaged and cannot be read.",
            "Copy it again.",
            received=f"{path} ({str(error)[:100]})",
        ) from None
    if not model.meta_graphs:
        raise DataError("The model is damaged: its file is empty.", "Copy it again.", received=path)
    return model


def _operations(graph: Any) -> set[str]:
    """Return the operations that are neither known to only compute nor part of TensorFlow's saver."""
    library = graph.graph_def.library
    functions = {function.signature.name: function.node_def for function in library.function}
    nodes = graph.graph_def.node
    saver = {graph.saver_def.save_tensor_name.partition(":")[0], graph.saver_def.restore_op_name}
    # Loading in TensorFlow 2 runs neither of the two saver nodes; any other node may be run.
    saving = _reachable(functions, [node for node in nodes if node.name in saver])
    others = [node for node in nodes if node.name not in saver]
    named = _named(graph.object_graph_def) | _called_implicitly(library) | (functions.keys() - saving)
    others += [node for name in named & functions.keys() for node in functions[name]]
    saving -= _reachable(functions, others) | named
    inside = {node.op for name in saving for node in functions[name]}
    outside = {node.op for name in functions.keys() - saving for node in functions[name]}
    outside |= {node.op for node in nodes}
    return (outside - COMPUTING - functions.keys()) | (inside - COMPUTING - SAVING - functions.keys())


def _named(objects: Any) -> set[str]:
    """Return the names of the functions that belong to an object of the SavedModel."""
    names = set(objects.concrete_functions)
    for node in objects.nodes:
        names |= {*node.function.concrete_functions, node.bare_concrete_function.concrete_function_name}
    return names


def _called_implicitly(library: Any) -> set[str]:
    """Return the names of the functions that may run although no node calls them.

    These are gradients, and functions with attributes: with api_implements, TensorFlow replaces a call to one
    function with a call to another.
    """
    names = {gradient.gradient_func for gradient in (*library.gradient, *library.registered_gradients)}
    return names | {
        function.signature.name
        for function in library.function
        if function.attr.keys() - _ATTRIBUTES_OF_SAVER
    }


def _reachable(functions: Mapping[str, Any], nodes: Iterable[Any]) -> set[str]:
    """Return the names of the functions that `nodes` call, directly or indirectly."""
    waiting = list(nodes)
    reached: set[str] = set()
    while waiting:
        node = waiting.pop()
        values = node.attr.values()
        named = {node.op, *(value.func.name for value in values)}
        named |= {function.name for value in values for function in value.list.func}
        named |= {text.decode("utf-8", "replace") for value in values for text in (value.s, *value.list.s)}
        for name in (named & functions.keys()) - reached:
            reached.add(name)
            waiting += functions[name]
    return reached


_REMEDY = "Pass the folder of a finished run, or its model/ folder."


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers of a model for a batch of images."""

    probabilities: np.ndarray[Any, Any]
    """float32 [images, classes]; zeros for an image that cannot be decoded."""
    errors: tuple[str, ...]
    """Why an image cannot be decoded; empty if it can."""
    known: np.ndarray[Any, Any] | None = None
    """float32 [images], p-values in 0..1; None if the model has no detector."""
    accepted: np.ndarray[Any, Any] | None = None
    """bool [images], whether `known` reaches the level of the model; None if it has no detector."""


@dataclass(frozen=True)
class LoadedModel:
    """A SavedModel and the content of its assets."""

    path: Path
    class_names: tuple[str, ...]
    data: DataSpec
    """Image settings of the model; no other field of `DataSpec` is set."""
    signatures: Any
    thresholds: tuple[float, ...] = ()
    """Probability from which each label is predicted; only with data.labels multi."""

    temperature: float = 1.0
    """Divisor of the logits; the probabilities are those after it."""
    level: float | None = None
    """Images whose `known` is below it are not accepted; None if the model has no detector."""

    def classify(self, images: Sequence[bytes]) -> Answers:
        """Return the answers for encoded images; one that cannot be decoded has an error."""
        try:
            outputs = self.signatures["serving_default"](image_bytes=tf.constant(list(images), tf.string))
        except tf.errors.InvalidArgumentError:
            # In a model of an earlier version, one bad image fails the whole batch.
            return self._classify_separately(images)
        errors = [text.decode() for text in outputs["error"].numpy()] if "error" in outputs else []
        return Answers(
            np.asarray(outputs["probabilities"]),
            tuple(errors) or ("",) * len(images),
            *(np.asarray(outputs[name]) if name in outputs else None for name in ("known", "accepted")),
        )

    def _classify_separately(self, images: Sequence[bytes]) -> Answers:
        if len(images) == 1:
            empty = np.zeros((1, len(self.class_names)), np.float32)
            return Answers(empty, (reason_of_failure(images[0]),))
        answers = [self.classify([image]) for image in images]
        probabilities = np.concatenate([answer.probabilities for answer in answers])
        return Answers(probabilities, tuple(answer.errors[0] for answer in answers))

    def find_nearest(self, images: Sequence[bytes]) -> list[tuple[str, ...]]:
        """Return the names of the training images nearest to each encoded image; none without a detector."""
        if "nearest" not in self.signatures:
            return [()] * len(images)
        outputs = self.signatures["nearest"](image_bytes=tf.constant(list(images), tf.string))
        return [tuple(name.decode() for name in names) for names in outputs["names"].numpy()]

    def classify_pixels(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return probabilities, float32 [images, classes].

        pixels: [images, height, width, channels] in 0..255.
        """
        outputs = self.signatures["pixels"](pixels=tf.constant(pixels, tf.float32))
        return np.asarray(outputs["probabilities"])


def load_model(path: Path, trust: bool = False) -> LoadedModel:
    """Return the model at `path`, a run folder or a model folder.

    Unless `trust` is set, all its operations must be known to only compute. Raises UsageError if there is no
    model or it is not trusted, DataError if it is damaged.
    """
    folder = _model_folder(path)
    description = read_description(folder)
    if not trust:
        require_computing(folder)
    try:
        loaded = tf.saved_model.load(str(folder))
        names = ("serving_default", "pixels", *({"nearest"} & set(loaded.signatures)))
        signatures = {name: loaded.signatures[name] for name in names}
        data = _described_data(description)
        _require_consistent(signatures, description, data)
        temperature, level = float(description.get("temperature", 1.0)), _find_level(description)
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise  # out of memory, the model may be fine
    except Exception as error:  # TensorFlow has no exception of its own for a damaged file
        raise DataError(
            "The model is damaged and cannot be loaded.",
            "Copy it again, or train again.",
            received=f"{folder} ({(str(error) or type(error).__name__).splitlines()[0][:200]})",
        ) from None
    return LoadedModel(
        folder,
        tuple(description["class_names"]),
        data,
        _Signatures(signatures, loaded),
        _thresholds(description),
        temperature,
        level,
    )


def _described_data(description: dict[str, Any]) -> DataSpec:
    """Return the image settings of the model. Raises ValueError or KeyError."""
    required = ("image_size", "resize", "interpolation")
    # Models of earlier versions lack the other settings.
    optional = {*PIXEL_SETTINGS, "max_image_pixels", "labels"} & description.keys()
    return DataSpec(**{key: description[key] for key in (*required, *optional)})


def _require_consistent(signatures: dict[str, Any], description: dict[str, Any], data: DataSpec) -> None:
    """Raise ValueError if the assets do not match the model."""
    shape = signatures["pixels"].structured_input_signature[1]["pixels"].shape
    classes = signatures["pixels"].structured_outputs["probabilities"].shape[-1]
    names = description["class_names"]
    if not isinstance(names, list) or len({name for name in names if isinstance(name, str)}) < len(names):
        raise ValueError("class_names in assets/model.json is not a list of different names")
    if len(_thresholds(description)) != (len(names) if data.labels == "multi" else 0):
        raise ValueError("thresholds in assets/model.json do not match its labels")
    if not shape.is_compatible_with([None, *data.pixel_format.shape]) or classes not in (
        None,
        len(description["class_names"]),
    ):
        raise ValueError("assets/model.json belongs to another model")


def _thresholds(description: dict[str, Any]) -> tuple[float, ...]:
    """Return the threshold of each label, in label order; empty for a model of one label per image."""
    thresholds = description.get("thresholds", {})
    return tuple(float(thresholds[name]) for name in description["class_names"] if thresholds)


def _find_level(description: dict[str, Any]) -> float | None:
    rejection = description.get("rejection")
    return None if rejection is None else float(rejection["level"])


class _Signatures(dict[str, Any]):
    """Signatures with a reference to their model, because TensorFlow refers to its variables weakly."""

    def __init__(self, signatures: dict[str, Any], owner: Any) -> None:
        super().__init__(signatures)
        self.owner = owner


def _model_folder(path: Path) -> Path:
    if not path.exists():
        raise UsageError("The model folder does not exist.", _REMEDY, received=path)
    for folder in (path, path / "model"):
        if (folder / "saved_model.pb").exists():
            return folder
    raise UsageError("The folder is neither a run nor a model of trainer.", _REMEDY, received=path)


def read_description(folder: Path) -> dict[str, Any]:
    """Return the description of the SavedModel in `folder`: class_names, image_size, and so on.

    Raises UsageError if it was not exported by this program, or in a format that is no longer read.
    """
    try:
        description: dict[str, Any] = json.loads(
            (folder / "assets" / "model.json").read_text(encoding="utf-8")
        )
        version = description["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(
            "The SavedModel was not exported by trainer, so its inputs are unknown.", _REMEDY, received=folder
        ) from None
    if version not in (SINGLE_LABEL_VERSION, MULTI_LABEL_VERSION, FORMAT_VERSION):
        raise UsageError(
            f"This version reads only the model formats {SINGLE_LABEL_VERSION} to {FORMAT_VERSION}.",
            f"Use the version that exported it ({description.get('trainer_version')}), or train again.",
            received=f"format {version}",
        )
    return description
