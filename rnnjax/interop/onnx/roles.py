"""Which inputs and outputs of a graph are data, and which are states of its recurrent nodes."""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from rnnjax.interop.onnx.contents import RawNode
from rnnjax.interop.onnx.operators import OPERATORS, Operator
from rnnjax.interop.onnx.recurrent import RECURRENT

Role = Literal["data", "state", "lengths", "unused"]


def input_roles(
    inputs: Iterable[str], nodes: Sequence[RawNode], outputs: Iterable[str]
) -> dict[str, Role]:
    """Of each input: data, or what is read as a state or as lengths alone, or by nothing."""
    readers: dict[str, list[RawNode]] = collections.defaultdict(list)
    for node in nodes:
        for name in dict.fromkeys(node.reads):
            readers[name].append(node)
    given_out = frozenset(outputs)
    states = _read_as(
        lambda node: node.inputs[5:7], lambda operator: True, nodes, readers, given_out
    )
    lengths = _read_as(
        lambda node: node.inputs[4:5],
        lambda operator: operator.kind in ("same", "type"),
        nodes,
        readers,
        given_out,
    )
    roles: dict[str, Role] = {}
    for name in inputs:
        if not readers[name] and name not in given_out:
            roles[name] = "unused"
        else:
            roles[name] = "state" if states(name) else "lengths" if lengths(name) else "data"
    return roles


def _read_as(
    places: Callable[[RawNode], Sequence[str]],
    through: Callable[[Operator], bool],
    nodes: Sequence[RawNode],
    readers: dict[str, list[RawNode]],
    given_out: frozenset[str],
) -> Callable[[str], bool]:
    """Whether a value is read in such places of recurrent nodes alone, perhaps rearranged."""
    good: dict[str, bool] = {}

    def is_good(name: str) -> bool:
        return (
            name not in given_out
            and bool(readers[name])
            and all(passes(name, node) for node in readers[name])
        )

    def passes(name: str, node: RawNode) -> bool:
        if node.op_type in RECURRENT:
            return list(places(node)).count(name) == node.inputs.count(name)
        operator = OPERATORS[node.op_type]
        moved = operator.moved(node.inputs)
        return (
            through(operator)
            and name in moved
            and name not in node.inputs[len(moved) :]
            and all(good[output] for output in node.outputs if readers.get(output))
            and not given_out & set(node.outputs)
        )

    for node in reversed(nodes):  # from the last to the first: what is read is made before
        for name in filter(None, node.outputs):
            good[name] = is_good(name)
    return is_good


def data_outputs(
    outputs: Sequence[str], nodes: Iterable[RawNode], *, streams: bool
) -> tuple[str, ...]:
    """The outputs that are no states; all of them, if all are.

    Where states are inputs, a state that is rearranged still is one, unless there is nothing else;
    otherwise it is what the model computes, such as the last output that a classifier sees.
    """
    plain: set[str] = set()
    rearranged: set[str] = set()
    for node in nodes:
        if node.op_type in RECURRENT:
            plain.update(filter(None, node.outputs[1:]))
            continue
        operator = OPERATORS[node.op_type]
        moved = operator.moved(node.inputs)
        if operator.kind == "same" and plain.issuperset(moved):
            plain.update(node.outputs)
        elif moved and (plain | rearranged).issuperset(moved):
            rearranged.update(filter(None, node.outputs))
    not_plain = tuple(name for name in outputs if name not in plain)
    if streams:
        data = tuple(name for name in not_plain if name not in rearranged)
        not_plain = data or not_plain
    return not_plain or tuple(outputs)
