"""What lies between the losses and the recorded calls in the autograd graph."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradmimic.engines.operations import Call


@dataclass(frozen=True)
class Walk:
    """The graph of some losses, down to what nothing recorded lies below.

    Args:
        lowest: edges of recorded outputs with no recorded one below; a backward pass to these
            reaches all others.
        leaves: tensors that the losses depend on otherwise than by the recorded calls.
        nodes: every node on the way.
        above: nodes with a recorded call below them.
        kind: a number that tells graphs of other models or losses apart.
    """

    lowest: tuple[Any, ...]
    leaves: tuple[Tensor, ...]
    nodes: frozenset[Any]
    above: frozenset[Any]
    kind: int


def walk(losses: Iterable[Tensor], calls: Iterable[Call]) -> Walk:
    """Walk the graph from the losses down, passing each recorded call by its data.

    Args:
        losses: with their graph.
        calls: as the recorder kept them.
    """
    below: dict[Any, list[Any]] = {}  # node of a recorded output: nodes of its call's data
    edges: dict[Any, list[Any]] = {}
    for call in calls:
        for edge in call.edges:
            below.setdefault(edge.node, []).extend(source.node for source in call.sources)
            edges.setdefault(edge.node, []).append(edge)
    roots = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    order, names = _depth_first(roots, below)
    reaches: dict[Any, bool] = {}  # whether a recorded output is the node itself or below it
    lowest: list[Any] = []
    leaves: list[Tensor] = []
    for node in order:  # children first
        deeper = any(reaches.get(child, False) for child in _children(node, below))
        if node in below and not deeper:
            lowest.extend(edges[node])
        if node in below or deeper:
            reaches[node] = True
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
    above = frozenset(
        node for node in reaches if node not in below or any(reaches.get(c) for c in below[node])
    )
    return Walk(tuple(lowest), tuple(leaves), frozenset(order), above, hash(tuple(names)))


def _depth_first(roots: list[Any], below: Mapping[Any, list[Any]]) -> tuple[list[Any], list[str]]:
    """Return all nodes, each after its children, and their names in the order of discovery."""
    seen: set[Any] = set()
    order: list[Any] = []
    names: list[str] = []
    for root in roots:
        stack: list[tuple[Any, bool]] = [(root, False)]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                names.append(node.name())
                stack.append((node, True))
                stack.extend((child, False) for child in _children(node, below))
    return order, names


def _children(node: Any, below: Mapping[Any, list[Any]]) -> list[Any]:
    if node in below:
        return below[node]
    return [child for child, _ in node.next_functions if child is not None]
