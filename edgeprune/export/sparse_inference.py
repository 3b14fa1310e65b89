"""Whether XNNPACK, the CPU engine of TFLite, would run a model's zeros as sparse work.

XNNPACK switches whole clusters of operators to a channels-first layout in which its sparse
1x1 convolutions run. A cluster starts at a 3x3 stride-2 convolution of 3 channels, passes
through operators that keep the layout, and ends in a spatial mean. Where a cluster comes to
another end, XNNPACK switches it all the same, nothing switches back, and what follows reads the
values in the wrong order: such a model must not be stored sparse.

Source: google/XNNPACK src/subgraph.c, `xnn_check_nchw_compatibility` and
`xnn_subgraph_rewrite_for_nchw`; tensorflow/lite/delegates/xnnpack/README.md, "Sparse Inference";
checked in emulation by tools/bench/sparse_eligibility.py.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from edgeprune.errors import InputError
from edgeprune.export.graph import Operator, Subgraph, Tensor, TfliteModel
from edgeprune.export.macs import tflite_macs
from edgeprune.export.sparse_rules import Roles, data_inputs, users

# As many blocked clusters are reported; real models have one or two.
_MAX_CLUSTERS = 8
# Of the work that runs sparse: at 90 % zeros that takes 0.15 to 0.2 of its time, so that less than
# this leaves an inference near half of its own, or above.
_LEAST_SHARE = 0.65
# What an output of an operator without products takes, in multiply-accumulates: as measured in
# emulation on MobileNets with swish (LOGISTIC and MUL) and hard swish.
_WORK = {"ELU": 16, "LOGISTIC": 16, "ADD": 4, "HARD_SWISH": 4, "LEAKY_RELU": 4, "MUL": 4}
_DAMAGED = "an operator's inputs do not fit it, in number or shape; the file is damaged"
_NO_START = (
    "reads the model's input; the sparse part must start at a 3x3 stride-2 convolution of 3 "
    "channels"
)
_OUTPUT = "is an output of the model; what is inside the sparse part cannot be one"
_WRONG = (
    "is where XNNPACK's channels-first layout would end with nothing to change it back: stored "
    "sparse, the model may be computed wrongly on Arm"
)
NO_END = "no spatial MEAN (global average pooling) for the sparse part to end in"
_NEWER_END = f"{NO_END}; newer runtimes than tflite-runtime 2.14 take other reductions, too"
_DEVICES = "on Arm and WebAssembly only: on x86 XNNPACK has no sparse inference"


@dataclass(frozen=True)
class SparseInference:
    """The verdict, and why.

    Attributes:
      eligible: whether a cluster qualifies, and has most of the work; None where it cannot be
        told, or depends on the runtime's version, or little of the work runs sparse.
      reasons: what stands in the way, layer by layer; if eligible, on which devices.
    """

    eligible: bool | None
    reasons: tuple[str, ...]


def sparse_inference(model: TfliteModel) -> SparseInference:
    """Judge a model's main graph by XNNPACK's own rules.

    Raises:
      InputError: operators' inputs do not fit them, in number or shape.
    """
    graph = model.subgraphs[0]
    weights = [kernel for operator in graph.operators for kernel in graph.kernels(operator)]
    if reason := _not_stored_sparse(weights):
        return SparseInference(False, (reason,))
    wrong = miscomputed(model)
    reasons = [] if wrong is None else [in_words(graph, wrong)]
    parts = sparse_parts(model)
    if not parts:
        if wrong is None and _runs_in_newer(model):
            return SparseInference(None, (_NEWER_END,))
        return SparseInference(False, (*reasons, NO_END))
    for part in parts:
        if part.blockers:
            reasons.append(in_words(graph, part.blockers[0]))
            continue
        few = too_dense(graph, part.operators)
        if few and not _has_enough_zeros(graph, part.operators):
            reasons.append(few)
        elif wrong is None:
            doubt = few or little_work(model)
            return SparseInference(None if doubt else True, (doubt or _DEVICES,))
    return SparseInference(False, tuple(dict.fromkeys(reasons)))


def _runs_in_newer(model: TfliteModel) -> bool:
    """Whether a part of it runs sparse in newer runtimes."""
    graph = model.subgraphs[0]
    return any(
        not part.blockers and _has_enough_zeros(graph, part.operators)
        for part in sparse_parts(model, newer=True)
    )


def _not_stored_sparse(weights: list[Tensor]) -> str | None:
    if weights and not any(kernel.dtype.startswith("float") for kernel in weights):
        return "the weights are integers; only float models run sparse"
    if not any(kernel.sparsity is not None for kernel in weights):
        return "no weights are stored sparse (DENSIFY): prune, and convert with sparse on"
    if not any(kernel.sparsity and kernel.dtype.startswith("float") for kernel in weights):
        return "the sparse weights are integers; only float ones run sparse"
    return None


@dataclass(frozen=True, eq=False)
class Blocker:
    """An operator that keeps a part of a model from running sparse.

    Attributes:
      operator: in the main graph.
      why: what follows the operator's name in a sentence.
    """

    operator: Operator
    why: str


@dataclass(frozen=True, eq=False)
class SparsePart:
    """The operators that would run in the channels-first layout, up to one spatial mean.

    Attributes:
      operators: of the main graph, with those in the way.
      blockers: what stands in the way, nearest to the end first; none if the part qualifies.
    """

    operators: tuple[Operator, ...]
    blockers: tuple[Blocker, ...]


def sparse_parts(model: TfliteModel, *, newer: bool = False) -> tuple[SparsePart, ...]:
    """Find the parts of the main graph that may run sparse, whatever their weights hold.

    How many weights are zero, and whether they are stored sparse, plays no role here.

    Args:
      model: whose main graph is looked at.
      newer: in runtimes newer than tflite-runtime 2.14, if not in that.

    Raises:
      InputError: operators' inputs do not fit them, in number or shape.
    """
    graph = model.subgraphs[0]
    try:
        roles = Roles(graph, newer=newer)
        parts: list[SparsePart] = []
        seen: set[int] = set()
        for leaf in graph.operators:
            if roles.of(leaf) not in ("exit", "end") or id(leaf) in seen:
                continue
            if len(parts) == _MAX_CLUSTERS:
                break
            cluster, blockers = _cluster(graph, leaf, roles)
            seen |= set(cluster)
            parts.append(SparsePart(tuple(cluster.values()), tuple(blockers)))
    except IndexError as error:
        raise InputError(_DAMAGED) from error
    return tuple(parts)


def miscomputed(model: TfliteModel, *, pruned: bool = False) -> Blocker | None:
    """Find where XNNPACK would begin to compute something else if the weights were stored sparse.

    Args:
      model: whose main graph is looked at.
      pruned: suppose that enough weights are zero; otherwise they are counted.

    Returns:
      The operator behind which values are read in the wrong order; None if all is well.

    Raises:
      InputError: operators' inputs do not fit them, in number or shape.
    """
    graph = model.subgraphs[0]
    try:
        found = _cut_off(graph, Roles(graph), pruned)
        if found is None:
            found = _cut_off(graph, Roles(graph, newer=True), pruned)
    except IndexError as error:
        raise InputError(_DAMAGED) from error
    return None if found is None else Blocker(found, _WRONG)


def in_words(graph: Subgraph, blocker: Blocker) -> str:
    """Say what stands in the way, with the layer's name."""
    name = layer_name(graph, blocker.operator)
    return f"layer '{name}' ({blocker.operator.name}) {blocker.why}"


def layer_name(graph: Subgraph, operator: Operator) -> str:
    """Name an operator by its output: `model/conv1/Relu;model/bn1/...` -> `model/conv1/Relu`."""
    for index in operator.outputs:
        if index >= 0 and (name := graph.tensors[index].name.strip(";").partition(";")[0]):
            return name
    return operator.name


def too_dense(graph: Subgraph, operators: Collection[Operator]) -> str | None:
    """Say that a part's weights are not zero often enough to run sparse; None if they are."""
    for counted, what in _counted(operators):
        zeros, entries = _zeros(graph, counted)
        if 3 * zeros <= 2 * entries:
            found = f"{zeros / entries:.3f}" if entries else "none"
            return f"sparsity of the {what} is {found}; it must be more than 2/3"
    return None


def little_work(model: TfliteModel) -> str | None:
    """Say that too little of the work would run sparse for a promise; None if it is enough."""
    macs = tflite_macs(model)
    if not macs.total:
        return None
    graph = model.subgraphs[0]
    inside = {
        id(operator)
        for part in sparse_parts(model)
        if not part.blockers
        for operator in part.operators
        if any(_is_pointwise(kernel) for kernel in graph.kernels(operator))
    }
    sparse = total = 0
    for position, operator in enumerate(graph.operators):
        work = macs.by_layer.get(position, 0)
        entries = sum(graph.tensors[index].entries for index in operator.outputs)
        work += _WORK.get(operator.name, 0) * entries
        total += work
        sparse += work if id(operator) in inside else 0
    share = sparse / total
    if share >= _LEAST_SHARE:
        return None
    return f"only {share:.0%} of the work is in 1x1 convolutions that run sparse"


def _has_enough_zeros(graph: Subgraph, operators: Collection[Operator]) -> bool:
    """Whether any XNNPACK would take a cluster for sparse; see `too_dense`."""
    counts = [_zeros(graph, counted) for counted, _ in _counted(operators)]
    return any(3 * zeros > 2 * entries for zeros, entries in counts)


def _counted(operators: Collection[Operator]) -> list[tuple[Collection[Operator], str]]:
    """Say whose zeros count: those of 1x1 convolutions, in newer runtimes also the others."""
    pointwise = [operator for operator in operators if operator.name == "CONV_2D"]
    return [
        (pointwise, "1x1 convolutions"),
        (operators, "1x1 convolutions and fully connected layers, which newer runtimes count too,"),
    ]


def _zeros(graph: Subgraph, operators: Iterable[Operator]) -> tuple[int, int]:
    kernels = [
        kernel
        for operator in operators
        for kernel in graph.kernels(operator)
        if operator.name in ("CONV_2D", "FULLY_CONNECTED") and _is_pointwise(kernel)
    ]
    return sum(kernel.zeros() for kernel in kernels), sum(kernel.entries for kernel in kernels)


def _is_pointwise(kernel: Tensor) -> bool:
    return len(kernel.shape) == 2 or kernel.shape[1:3] == (1, 1)


def _cluster(
    graph: Subgraph, leaf: Operator, roles: Roles
) -> tuple[dict[int, Operator], list[Blocker]]:
    """Collect the operators from the entry to a leaf, and those among them that cannot be there."""
    cluster: dict[int, Operator] = {id(leaf): leaf}
    blockers: list[Blocker] = []
    waiting = [leaf]
    while waiting:
        operator = waiting.pop()
        for index in data_inputs(graph, operator):
            producer = graph.producers.get(index)
            if producer is None:
                if roles.of(operator) is not None:
                    blockers.append(Blocker(operator, _NO_START))
                continue
            if id(producer) in cluster:
                continue
            cluster[id(producer)] = producer
            if roles.of(producer) in (None, "end"):
                why = roles.why_not(producer, "is merged into no convolution")
                blockers.append(Blocker(producer, why))
            if roles.of(producer) != "entry":
                waiting.append(producer)
    if blockers:
        return cluster, blockers
    # What else keeps the layout and reads nothing but the cluster belongs to it.
    for operator in graph.operators:
        if roles.keep(operator) and _reads_only(graph, operator, cluster, roles):
            cluster[id(operator)] = operator
    for operator in cluster.values():
        blockers += _leaving(graph, operator, cluster, roles)
    return cluster, list({id(blocker.operator): blocker for blocker in blockers}.values())


def _leaving(
    graph: Subgraph, operator: Operator, cluster: Collection[int], roles: Roles
) -> list[Blocker]:
    """Name what reads the changed layout from outside of the cluster."""
    blockers = []
    for index in operator.outputs:
        readers = users(graph, index)
        outside = [user for user in readers if id(user) not in cluster]
        if len(outside) == len(readers) and not _is_changed(graph, operator, index, roles):
            continue  # whatever follows finds the layout as it was
        for user in outside:
            why = roles.why_not(user, "is outside")
            blockers.append(Blocker(user, f"{why}, and reads from inside the sparse part"))
        if index in graph.outputs:
            blockers.append(Blocker(operator, _OUTPUT))
    return blockers


def _cut_off(graph: Subgraph, roles: Roles, pruned: bool) -> Operator | None:
    """Find an operator whose output XNNPACK would leave in the changed layout."""
    ending = ("exit", "end", "scrambled")
    if all(roles.of(operator) not in ending for operator in graph.operators):
        return None  # where nothing ends a cluster, XNNPACK makes none
    changed: dict[int, Operator] = {}
    for operator in graph.operators:
        starts = roles.of(operator) == "entry"
        if starts or (roles.keep(operator) and _reads_only(graph, operator, changed, roles)):
            changed[id(operator)] = operator
    for cluster in _connected(graph, changed, roles):
        if pruned or _has_enough_zeros(graph, cluster):
            scrambled = (own for own in cluster if roles.of(own) == "scrambled")
            found = next(scrambled, None) or _last_changed(graph, cluster, changed, roles)
            if found is not None:
                return found
    return None


def _last_changed(
    graph: Subgraph, cluster: Iterable[Operator], changed: Collection[int], roles: Roles
) -> Operator | None:
    """Find the last operator of a cluster that is cut off; None where XNNPACK leaves it alone."""
    found = None
    for operator in cluster:
        for index in operator.outputs:
            readers = users(graph, index)
            inside = [user for user in readers if id(user) in changed and roles.keep(user)]
            outside = [user for user in readers if user not in inside]
            if outside and (inside or any(map(roles.keep, outside))):
                return None  # this XNNPACK notices
            left = _is_changed(graph, operator, index, roles)
            if (left and outside) or (index in graph.outputs and (left or inside)):
                found = operator
    return found


def _connected(graph: Subgraph, changed: dict[int, Operator], roles: Roles) -> list[list[Operator]]:
    """Divide operators into clusters that exchange tensors."""
    clusters: dict[int, list[Operator]] = {}
    for key, operator in changed.items():
        clusters[key] = [operator]
        if not roles.keep(operator):
            continue
        for index in data_inputs(graph, operator):
            small, large = sorted((clusters[key], clusters[id(graph.producers[index])]), key=len)
            if small is not large:
                large += small
                clusters |= dict.fromkeys(map(id, small), large)
    return list({id(cluster): cluster for cluster in clusters.values()}.values())


def _reads_only(
    graph: Subgraph, operator: Operator, cluster: Collection[int], roles: Roles
) -> bool:
    """Whether an operator reads something, and nothing but a cluster's changed layout."""
    producers = [graph.producers.get(index) for index in data_inputs(graph, operator)]
    return bool(producers) and all(
        producer is not None and id(producer) in cluster and roles.of(producer) != "end"
        for producer in producers
    )


def _is_changed(graph: Subgraph, operator: Operator, index: int, roles: Roles) -> bool:
    """Whether an output that nothing in the cluster reads has another order of its values."""
    shape = graph.tensors[index].shape
    return roles.of(operator) == "inside" and len(shape) == 4 and shape[1] * shape[2] > 1
