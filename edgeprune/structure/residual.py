"""Find what can leave a model whole: residual branches, and encoder layers made of them."""

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from edgeprune.errors import InputError
from edgeprune.rebuild import calls, is_container
from edgeprune.structure.blocks import Block, Blocks
from edgeprune.structure.graph import Refusal, check_model

Granularity = Literal["block", "branch"]
GRANULARITIES: tuple[Granularity, ...] = ("block", "branch")

# Sums of more values than this are not taken apart; a transformer's parallel branches need 3.
_MAX_TERMS = 8


def find_blocks(model: Any, granularity: Granularity = "block") -> Blocks:
    """Find the residual branches of a model, or the blocks that they form.

    A *branch* is what an addition adds to the value that the branch itself begins at. In
    ``y = x + f(x)`` it is f: without it, y is x. Every path through f begins at x, or at values
    made elsewhere (an attention mask, an encoder's output) that do not come from x, and nothing
    inside is read outside. Parallel branches, as in ``x + attention(h) + feed_forward(h)`` with
    ``h = norm(x)``, count as one if they share layers. A branch that holds others is not offered.

    A *block* is one branch, or an encoder layer. Branches that follow one another directly, or
    with normalization, activation and dropout layers between, form a run. In a run with and
    without attention each block begins with an attention branch and ends before the next
    attention branch that follows one without::

        pre-norm   x -> [norm, attention, +] -> [norm, feed-forward, +] -> next layer
        post-norm  x -> [attention, +] -> norm -> [feed-forward, +] -> norm -> next layer

    Each line is one block, of two branches; a decoder layer (attention, cross-attention,
    feed-forward) is one of three. In a post-norm run, where normalizations stand between
    branches, the one behind the last addition leaves as well, so what remains is the same
    architecture with fewer layers. Blocks do not reach across the borders of nested models.

    Each call is visited a fixed number of times, but once more for each branch that it is in.

    Args:
      model: a built Keras 3 Functional or Sequential model, nested models included.
      granularity: ``block`` or ``branch``.

    Raises:
      UnsupportedError: a subclassed or tf_keras model.
      InputError: it has no weights yet, or the granularity is unknown.
    """
    check_model(model)
    if granularity not in GRANULARITIES:
        raise InputError(f"got granularity={granularity!r}; supported: {', '.join(GRANULARITIES)}")
    search = _Search(granularity)
    return Blocks(tuple(search.container(model, "")), tuple(search.refused))


@dataclass(eq=False)
class _Branch:
    """An addition, what it adds to, and the calls that make what it adds."""

    sums: list[int]
    """The addition, and the partial sums that it is made of."""
    entry: Any
    inside: list[int]
    reads: int
    """How often the branch and its additions read the entry."""
    attention: bool

    @property
    def calls(self) -> list[int]:
        return sorted({*self.inside, *self.sums})


class _Search:
    """One pass over a model and the models inside it."""

    def __init__(self, granularity: Granularity) -> None:
        self._granularity = granularity
        self._inner: dict[int, list[Block]] = {}
        self.refused: list[Refusal] = []

    def container(self, container: Any, path: str) -> list[Block]:
        """Return the blocks of a model in the order in which they are computed."""
        graph = _Graph(container, path)
        placed: list[tuple[int, Block]] = []
        holders = set()
        for index, node in enumerate(graph.nodes):
            inner = node.operation
            if not is_container(inner):
                continue
            if id(inner) not in self._inner:
                found = self.container(inner, path + inner.name + "/")
                self._inner[id(inner)] = found
                placed += [(index, block) for block in found]
            if self._inner[id(inner)]:
                holders.add(index)
        branches, refused = _branches(graph, holders)
        self.refused += refused
        if self._granularity == "branch":
            own = [graph.block(branch.calls, [branch]) for branch in branches]
        else:
            own = _blocks(graph, branches)
        placed += [(graph.index(block.exit.outputs[0]), block) for block in own]
        return [block for _, block in sorted(placed, key=lambda pair: pair[0])]


class _Graph:
    """One container's calls in the order in which they are computed."""

    def __init__(self, container: Any, path: str) -> None:
        graph = container if hasattr(container, "_nodes_by_depth") else container._functional
        self.nodes = [node for node, _ in calls(graph)]
        self.made_at = {
            id(tensor): index for index, node in enumerate(self.nodes) for tensor in node.outputs
        }
        self.readers: dict[int, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for tensor in node.input_tensors:
                self.readers.setdefault(id(tensor), []).append(index)
        self._outputs = Counter(id(tensor) for tensor in graph.outputs)
        self.names: list[str] = []
        count: Counter[int] = Counter()
        for node in self.nodes:
            count[id(node.operation)] += 1
            number = count[id(node.operation)]
            self.names.append(path + node.operation.name + (f"#{number}" if number > 1 else ""))

    def uses(self, tensor: Any) -> int:
        """Count how often a value is read, as an output of the model too."""
        return len(self.readers.get(id(tensor), ())) + self._outputs[id(tensor)]

    def index(self, tensor: Any) -> int:
        """Return which call makes a value; -1 for an input of the container."""
        return self.made_at.get(id(tensor), -1)

    def maker(self, tensor: Any) -> str:
        """Return the name of what makes a value."""
        index = self.index(tensor)
        return str(tensor._keras_history.operation.name) if index < 0 else self.names[index]

    def block(self, inside: list[int], branches: list[_Branch]) -> Block:
        """Make a block of calls, of which the last one ends it, and the branches among them."""
        end = inside[-1]
        return Block(
            self.names[end],
            branches[0].entry,
            self.nodes[end],
            {self.names[index]: self.nodes[index].operation for index in inside},
            any(branch.attention for branch in branches),
        )


def _branches(graph: _Graph, holders: set[int]) -> tuple[list[_Branch], list[Refusal]]:
    """Return the branches of one container that hold no other, and the other additions."""
    found: dict[int, _Branch] = {}
    refused: dict[int, str] = {}
    for index, node in enumerate(graph.nodes):
        terms = _terms(node)
        if len({id(term) for term in terms}) < 2:
            continue
        branch, reason = _branch(graph, index, terms)
        if branch is None:
            refused[index] = reason
            continue
        for part in branch.sums[1:]:  # a sum of parallel branches is theirs
            refused.pop(part, None)
            found.pop(part, None)
        found[index] = branch
    inner = {*found, *holders}
    for index, branch in list(found.items()):
        held = [graph.names[at] for at in branch.inside if at in inner]
        if held:
            refused[index] = f"its branch holds '{held[0]}', which can leave by itself"
            del found[index]
    return list(found.values()), [
        Refusal(graph.names[index], reason) for index, reason in sorted(refused.items())
    ]


def _terms(node: Any) -> list[Any]:
    """Return the tensors that a call adds; none if it is no addition."""
    kind = type(node.operation)
    known = (kind.__name__, kind.__module__.rpartition(".")[0]) in (
        ("Add", "keras.src.layers.merging"),
        ("Add", "keras.src.ops"),
    )
    # InceptionResNetV2's: inputs[0] + scale * inputs[1]
    scaled = kind.__module__.startswith("keras.src.applications.inception_resnet")
    return list(node.input_tensors) if known or scaled else []


def _branch(graph: _Graph, index: int, terms: list[Any]) -> tuple[_Branch | None, str]:
    """Return the branch that an addition adds, or why there is none."""
    output = graph.nodes[index].outputs[0]
    reason = ""
    for sums, added in _sums(graph, index, terms):
        for position, entry in enumerate(added):
            if (tuple(entry.shape), entry.dtype) != (tuple(output.shape), output.dtype):
                continue
            if position and not _symmetric(graph.nodes[index]):
                continue
            others = [term for term in added if term is not entry]
            branch, why = _walk(graph, sums, entry, others)
            if branch is not None:
                return branch, ""
            reason = reason or why
    makers = " and ".join(f"'{graph.maker(term)}'" for term in terms[:3])
    return None, reason or (
        f"it adds {makers}, none of which is where the others begin (a projection or downsampling "
        "shortcut, or separate streams)"
    )


def _symmetric(node: Any) -> bool:
    return type(node.operation).__name__ == "Add"


def _sums(graph: _Graph, index: int, terms: list[Any]) -> Iterator[tuple[list[int], list[Any]]]:
    """Yield (additions, their terms): this one alone, then with the partial sums it is made of."""
    yield [index], terms
    sums, ahead, added = [index], list(terms), list[Any]()
    while ahead and len(added) + len(ahead) <= _MAX_TERMS:
        term = ahead.pop()
        maker = graph.index(term)
        parts = _terms(graph.nodes[maker]) if maker >= 0 and graph.uses(term) == 1 else []
        if len(parts) > 1 and _symmetric(graph.nodes[maker]):
            sums.append(maker)
            ahead += parts
        else:
            added.append(term)
    if len(sums) > 1 and not ahead:
        yield sums, added


def _walk(
    graph: _Graph, sums: list[int], entry: Any, others: list[Any]
) -> tuple[_Branch | None, str]:
    """Walk back from what is added, through all that nothing else reads, to the entry.

    A call is taken in once all that read it are in: latest call first, so each is decided once.
    What was computed before the entry cannot come from it, so the walk ends there.
    """
    start = graph.index(entry)
    if not all(_comes_from(graph, term, entry, set()) for term in others):
        return None, ""
    seen: Counter[int] = Counter()
    ahead: list[int] = []
    queued: set[int] = set()
    outside: list[Any] = []

    def read(tensors: list[Any]) -> None:
        for tensor in tensors:
            seen[id(tensor)] += 1
            maker = graph.index(tensor)
            if maker > start and maker not in queued:
                queued.add(maker)
                heapq.heappush(ahead, -maker)

    for index in sums:
        parts = _terms(graph.nodes[index])
        read([part for part in parts if graph.index(part) not in sums])
    inside = []
    while ahead:
        index = -heapq.heappop(ahead)
        node = graph.nodes[index]
        if all(seen[id(tensor)] == graph.uses(tensor) for tensor in node.outputs):
            inside.append(index)
            read(node.input_tensors)
        else:
            outside += [tensor for tensor in node.outputs if seen[id(tensor)]]
    visited: set[int] = set()
    for tensor in outside:
        if _comes_from(graph, tensor, entry, visited):
            return None, (
                f"'{graph.maker(tensor)}' inside its branch is read outside of it as well, or is "
                "an output of the model"
            )
    operations = [graph.nodes[index].operation for index in inside]
    attends = any(_attends(graph.nodes[index]) for index in inside)
    attends = attends or any(_holds_attention(operation) for operation in operations)
    return _Branch(sums, entry, sorted(inside), seen[id(entry)], attends), ""


def _comes_from(graph: _Graph, tensor: Any, source: Any, visited: set[int]) -> bool:
    """Tell whether a value is computed from another; `visited` calls are known not to be."""
    start = graph.index(source)
    ahead = [tensor]
    while ahead:
        tensor = ahead.pop()
        if tensor is source:
            return True
        maker = graph.index(tensor)
        if maker > start and maker not in visited:
            visited.add(maker)
            ahead += graph.nodes[maker].input_tensors
    return False


def _attends(node: Any) -> bool:
    """Tell whether a call multiplies two values of the graph, as attention does."""
    kind = type(node.operation).__name__
    return kind in ("Matmul", "Einsum", "Dot") and len(node.input_tensors) > 1


def _holds_attention(operation: Any) -> bool:
    if "Attention" in type(operation).__name__:
        return True
    if is_container(operation):
        graph = operation if hasattr(operation, "_nodes_by_depth") else operation._functional
        return any(_attends(node) or _holds_attention(node.operation) for node, _ in calls(graph))
    inner = getattr(operation, "_flatten_layers", None)
    return inner is not None and any(
        "Attention" in type(layer).__name__ for layer in inner(include_self=False)
    )


def _blocks(graph: _Graph, branches: list[_Branch]) -> list[Block]:
    """Join the branches of one container into blocks."""
    entries: dict[int, _Branch] = {}
    for branch in branches:
        entries.setdefault(id(branch.entry), branch)
    links: dict[int, tuple[list[int], _Branch | None]] = {}
    followers = set()
    for branch in branches:
        links[id(branch)] = _link(graph, branch, entries)
        followers.add(id(links[id(branch)][1]))
    found = []
    for branch in branches:
        if id(branch) in followers:
            continue
        run = [branch]
        while (follower := links[id(run[-1])][1]) is not None:
            run.append(follower)
        found += _cut(graph, run, [links[id(member)][0] for member in run])
    return found


def _link(
    graph: _Graph, branch: _Branch, entries: dict[int, _Branch]
) -> tuple[list[int], _Branch | None]:
    """Return what stands behind a branch's addition, and the branch that follows on it."""
    tensor, link = graph.nodes[branch.sums[0]].outputs[0], list[int]()
    while True:
        follower = entries.get(id(tensor))
        if follower is not None:
            # Who else reads it would miss it if the block left.
            return link, follower if follower.reads == graph.uses(tensor) else None
        if graph.uses(tensor) != 1 or id(tensor) not in graph.readers:
            return link, None
        (reader,) = graph.readers[id(tensor)]
        node = graph.nodes[reader]
        if len(node.input_tensors) > 1 or len(node.outputs) > 1:
            return link, None
        (made,) = node.outputs
        same = (tuple(made.shape), made.dtype) == (tuple(tensor.shape), tensor.dtype)
        if not same or not (_normalizes(node) or _passes(node)):
            return link, None
        link.append(reader)
        tensor = made


def _normalizes(node: Any) -> bool:
    return type(node.operation).__name__.endswith("Normalization")


def _passes(node: Any) -> bool:
    """Tell whether a call is an activation or dropout."""
    kind = type(node.operation)
    return kind.__module__.startswith(
        ("keras.src.layers.activations", "keras.src.layers.regularization", "keras.src.ops.nn")
    )


def _cut(graph: _Graph, run: list[_Branch], links: list[list[int]]) -> list[Block]:
    """Cut a run of branches into blocks; `links` stand behind each of them."""
    mixed = any(branch.attention for branch in run) and not all(branch.attention for branch in run)
    post_norm = any(_normalizes(graph.nodes[at]) for link in links[:-1] for at in link)
    starts = []
    attended = False
    for index, branch in enumerate(run):
        follows = index > 0 and run[index - 1].attention
        if not mixed or not attended or (branch.attention and not follows):
            starts.append(index)
        attended = attended or branch.attention
    found = []
    for start, stop in zip(starts, [*starts[1:], len(run)], strict=True):
        inside = [at for branch in run[start:stop] for at in branch.calls]
        inside += [at for link in links[start : stop - 1] for at in link]
        norms = [n for n, at in enumerate(links[stop - 1], 1) if _normalizes(graph.nodes[at])]
        if post_norm and norms:
            inside += links[stop - 1][: norms[0]]
        found.append(graph.block(sorted(inside), run[start:stop]))
    return found
