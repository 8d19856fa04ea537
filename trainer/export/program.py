"""Check of the operations in a SavedModel against an allowlist.

The file is only parsed: nothing in it is executed, and TensorFlow does not load it. The operations of the
allowlist only compute: they access no files, no network, no Python code and no other process, so a model may
contain them without being trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from trainer.errors import DataError, UsageError

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
_RANDOM = """
    Multinomial RandomGamma RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt
    StatelessMultinomial StatelessRandomGetAlg StatelessRandomGetKeyCounter
    StatelessRandomGetKeyCounterAlg StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomUniform
    StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformV2
    StatelessTruncatedNormal StatelessTruncatedNormalV2 TruncatedNormal
"""
COMPUTING = frozenset(
    " ".join((_MATH, _ARRAYS, _NETWORKS, _IMAGES, _STRINGS, _CONTROL, _VARIABLES, _RANDOM)).split()
)
"""Names as registered by TensorFlow. Operations that are not listed may be harmless too; they have not been
reviewed."""
SAVING = frozenset(("MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"))
"""Operations that TensorFlow adds to each SavedModel to save and restore its variables."""
_MOST_NAMED = 5
_REMEDY = "If you trust the author of the model, add --trust."
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
                _REMEDY,
                received=folder,
            )
        unknown |= _operations(graph)
    if unknown:
        raise UsageError(
            "The model has operations that may do more than compute, such as read and write files.",
            _REMEDY,
            received=f"{', '.join(sorted(unknown)[:_MOST_NAMED])} in {folder}",
        )


def _parse(folder: Path) -> Any:
    path, model = folder / "saved_model.pb", saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise DataError(
            "The model is damaged and can't be read.",
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
