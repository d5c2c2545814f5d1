"""Models as ONNX graphs, whose state goes in and comes out so that they can be streamed."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from rnnjax.cells.base import Cell, Params
from rnnjax.cells.onehot import OneHot
from rnnjax.engine import Scan
from rnnjax.engine.core.masking import Steps
from rnnjax.errors import InteropError, InvalidInputError
from rnnjax.interop.files import check_path, write_whole
from rnnjax.interop.layers import Context, Masking
from rnnjax.interop.model import Functional, Model, check_model
from rnnjax.interop.onnx.graph import CONSTANTS
from rnnjax.interop.onnx.primitives import Value, Writer, marked
from rnnjax.interop.onnx.read import holders, import_onnx, read_array
from rnnjax.interop.onnx.recurrent import (
    attributes_to_onnx,
    params_from_onnx,
    params_to_onnx,
)
from rnnjax.interop.program import of_any

OPSET = 20
"""The version of ONNX's operators that is written: the oldest that has every function of ours."""


def to_proto(
    model: Model,
    *,
    states: bool = True,
    lengths: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Any:
    """Write a model as an ONNX graph.

    Its axes have the order that ``print(model)`` says; those of ``time`` and ``batch`` are open.
    The graph is the program that runs here, so whatever a layer computes leaves with it: masks,
    convolutions, attention, states that go from layer to layer. An `rnnjax.LSTMCell`, also with
    peepholes, a `rnnjax.GRUCell` and a `rnnjax.SimpleRNNCell` are nodes of ONNX. The steps of any
    other cell, and of a layer whose mask comes from the data, are the body of a Scan. The graph has

    - an input ``xs``, float32 ``(time, batch, features)``, or ``ids``, int64 ``(time, batch)``,
      where the first layer takes ids; those of a `Functional` by their names, a time of its own
      for each (``time_2``) unless the layers want one length for all;
    - an output ``ys``, float32 ``(time, batch, size)``, or ``(batch, size)`` after a layer that
      returns its last output alone; those of a `Functional` have the names of their layers;
    - for each recurrent layer an input ``<layer>_h``, and ``<layer>_c`` for an LSTM's cell state,
      float32 ``(1, batch, hidden_size)``, and the state after the last step as outputs
      ``<layer>_h_out`` and ``<layer>_c_out``. In place of ``<layer>`` stand ``<layer>_0``,
      ``<layer>_1``... in a `rnnjax.Stack`, and ``<layer>_forward`` and ``<layer>_backward`` in a
      `rnnjax.Bidirectional`, each direction of which is a node; states of other cells have the
      names of their fields, and the earlier steps of a causal convolution are ``<layer>_state``. A
      sequence begins with zeros, and continues with the outputs fed back. A layer that begins with
      the states of another has none;
    - with ``lengths`` an input of that name, int32 ``(batch,)``: the valid steps of each row, one
      at least.

    Dropout and the noise of `rnnjax.Regularized` are left out, as for prediction. An id outside of
    an embedding, which is NaN here, is an error of the runtime, also where a mask leaves it out.

    Args:
        model: of layers. A model that was read from ONNX is written as that graph, with
            the parameters it now has: a tensor whose parameters have not changed keeps its bits,
            and where a cell has one bias for the two of a node that changed, the first is that
            bias, and the second zeros. Of the options it takes ``metadata`` alone.
        states: False leaves out the states: every sequence begins anew.
        lengths: whether rows of a batch can have lengths of their own.
        metadata: written to the model's ``metadata_props``.

    Returns:
        an ``onnx.ModelProto``, which ONNX's checker has passed unless it was read from ONNX.

    Raises:
        InteropError: a layer computes something that has no operator of ONNX here, or in another
            type than float32, or two values would have one name; or the package onnx is missing.
        InvalidInputError: an option does not fit.

    >>> cell = rnnjax.Stack([rnnjax.GRUCell(5), rnnjax.LSTMCell(4)])
    >>> proto = to_proto(Model.of(cell, cell.init(jax.random.key(0), 3)))
    >>> [value.name for value in proto.graph.input]
    ['xs', 'rnn_0_h', 'rnn_1_h', 'rnn_1_c']
    >>> [value.name for value in proto.graph.output]
    ['ys', 'rnn_0_h_out', 'rnn_1_h_out', 'rnn_1_c_out']
    """
    check_model(model)
    if isinstance(model.network, Functional):
        proto = _written(model, states, lengths)
    elif states and not lengths:
        proto = _written_back(model)
    else:
        raise InvalidInputError(
            "states and lengths are for models of layers, but this one is written as the graph "
            "that it was read from; leave them out"
        )
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidInputError(f"metadata must be strings, but has {key!r}: {value!r}")
        there = [entry for entry in proto.metadata_props if entry.key == key]
        entry = there[0] if there else proto.metadata_props.add(key=key)
        entry.value = value
    return proto


def save(model: Model, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a model as an ``.onnx`` file.

    Args:
        model: see `to_proto`.
        path: of the file; one that is there is replaced.
        options: those of `to_proto`.

    Raises:
        InteropError: as in `to_proto`, or the file cannot be written.
        InvalidInputError: ``path`` does not end in ``.onnx``, or an option does not fit.

    >>> import pathlib, tempfile
    >>> cell = rnnjax.LSTMCell(5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.onnx")
    ...     save(Model.of(cell, cell.init(jax.random.key(0), 3)), path)
    ...     path.stat().st_size > 4 * (3 * 20 + 5 * 20 + 20)
    True
    """
    check_path(path, ".onnx")
    write_whole(path, to_proto(model, **options).SerializeToString())


def ends_of(proto: Any) -> list[str]:
    r"""Say of each input and output of an ``onnx.ModelProto`` its type, its shape, and if a state.

    >>> cell = rnnjax.GRUCell(5)
    >>> print(*ends_of(to_proto(Model.of(cell, cell.init(jax.random.key(0), 3)))), sep="\n")
    input   xs         float32 (time, batch, 3)
    input   rnn_h      float32 (1, batch, 5)  a state: zeros, then the last rnn_h_out
    output  ys         float32 (time, batch, 5)
    output  rnn_h_out  float32 (1, batch, 5)
    """
    onnx, graph = import_onnx(), proto.graph
    held, ends = {one.name for one in graph.initializer}, {one.name for one in graph.output}
    rows = [("input", one) for one in graph.input if one.name not in held]
    rows += [("output", one) for one in graph.output]
    width = max(len(one.name) for _, one in rows)
    lines = []
    for what, one in rows:
        kind = one.type.tensor_type
        sizes = [str(n.dim_param or n.dim_value or "?") for n in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        after = f"{one.name}_out"
        state = f"  a state: zeros, then the last {after}" if after in ends else ""
        line = f"{what:6}  {one.name:{width}}  {dtype} ({', '.join(sizes)}){state}"
        lines.append(repr(line)[1:-1])  # names of files may hold what moves a terminal
    return lines


def _written_back(model: Model) -> Any:
    """The ONNX model that was imported, with the parameters as they are now."""
    if "message" not in model.origin:
        raise InvalidInputError(
            "a graph is written as the message that it was read from, but this model has none; "
            "keep the model that load gave, and change its parameters by with_params"
        )
    params = Model(model.network, model.origin["shapes"]).with_params(model.params).params
    onnx = import_onnx()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.origin["message"])
    held = dict(holders(proto.graph))
    for layer, names in model.origin["slots"].items():
        arrays = [read_array(held[name], None, name) if name else None for name in names]
        before: Sequence[Any] = arrays
        after: Sequence[Any] = [params[layer][name] for name in names if layer == CONSTANTS]
        if layer != CONSTANTS:
            cell = model.network.recurrent[layer].cell
            before = params_to_onnx(cell, params_from_onnx(cell, *arrays))
            after = params_to_onnx(cell, params[layer])
        for name, was, new, array in zip(names, before, after, arrays, strict=True):
            now = None if array is None else np.asarray(new).astype(array.dtype)
            if now is None or now.tobytes() == was.tobytes():
                continue
            tensor = onnx.numpy_helper.from_array(now, held[name].name)
            constant = not isinstance(held[name], onnx.TensorProto)
            held[name].CopyFrom(onnx.helper.make_attribute("value", tensor) if constant else tensor)
    return proto


@dataclasses.dataclass(frozen=True, repr=False)
class _Nodes(Scan):
    """Run a cell as a node of ONNX, or where none computes it, step by step.

    Args:
        lengths: whether masked steps are those after the graph's lengths.
    """

    lengths: bool = False

    def run(
        self, cell: Cell, params: Params, xs: Any, carry: Any, reverse: bool, steps: Steps
    ) -> tuple[Any, jax.Array]:
        """Run the cell over ``xs``."""
        if isinstance(xs, OneHot):  # its kernel stays one array
            xs = jax.nn.one_hot(xs.ids, xs.size)
        valid, scan = steps.per_step.valid, super().run
        alone = jax.tree.leaves(steps._replace(per_step=steps.per_step._replace(valid=None))) == []
        fits = alone and attributes_to_onnx(cell)[0] and (valid is None or self.lengths)

        def plain(carry: Any, xs: Any, params: Any) -> Any:
            return scan(cell, params, xs, carry, reverse, steps)

        if not fits or getattr(xs, "ndim", 0) != 3:
            return scan(cell, params, xs, carry, reverse, steps)
        names = tuple(sorted(params))
        write = functools.partial(_write_node, cell, reverse, valid is not None, names)
        after, ys = marked(write, plain, carry, xs, dict(params))
        return after, ys


def _write_node(
    cell: Any, reverse: bool, lengths: bool, names: Sequence[str], w: Writer, *values: Value
) -> list[Value]:
    """An RNN, GRU or LSTM node of a state, of inputs, and of the parameters of these names."""
    count = len(values) - len(names) - 1
    params = dict(zip(names, values[count + 1 :], strict=True))
    op_type, attributes = attributes_to_onnx(cell, reverse=reverse)
    wide = [v if isinstance(v, str) or not v.any() else w.constant(v, "h") for v in values[:count]]
    starts = [w.view("Unsqueeze", v, [0]) if isinstance(v, str) else "" for v in wide]
    # A layer may hold several nodes.
    scope = starts[0].removesuffix("_h") if starts[0].endswith("_h") else w.scope
    with w.set(scope=scope):
        weights = zip("WRBP", params_to_onnx(cell, params), strict=True)
        *held, P = ("" if array is None else w.constant(array, letter) for letter, array in weights)
        outputs = [w.value(name) for name in ("Y", "Y_h", "Y_c")[: 1 + count]]
        name = outputs[0] if scope in w.labels else scope
        w.labels.add(name)
        inputs = [values[count], *held, "lengths" * lengths, *starts, *([P] if P else [])]
        w.add(op_type, *inputs, outputs=outputs, name=name, **attributes)
    ys, *ends = (w.view("Squeeze", y, [int(i == 0)]) for i, y in enumerate(outputs))
    return [*ends, ys]


def _written(model: Model, states: bool, lengths: bool) -> Any:
    """The program of a model as a graph, with its states as inputs and outputs."""
    network: Any = model.network
    if lengths and not network.recurrent:
        raise InvalidInputError(
            "lengths are for recurrent layers, but the model has none; leave them out"
        )
    own = any(isinstance(x, Masking) or getattr(x, "mask_zero", False) for x in network.layer_list)
    method = _Nodes(lengths and not own and all(call.mask is True for call in network.calls))

    def program(params: Any, xs: Any, lengths: Any, begin: Any) -> Any:
        mask = None
        if lengths is not None:
            mask = jnp.arange(network.num_steps(params, xs))[:, None] < lengths
        carry = jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), dict(begin))
        context = Context(method=method, language="ONNX")
        after, ys = network.run(params, xs, carry, mask, context)
        ys = [ys[name] for name in network.names] if isinstance(ys, dict) else ys
        return ys, jax.tree.map(lambda leaf: leaf[None], [after[name] for name in begin])

    params = jax.tree.map(_float32, dict(model.params))
    xs, carry, batch = of_any(dataclasses.replace(model, params=params), None)
    one = jax.ShapeDtypeStruct((batch,), np.int32) if lengths else None
    start = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), carry)
    start = start if states else type(start)()
    traced, begin = jax.make_jaxpr(program)(params, xs, one, start), _names(start)
    w, values = Writer(), jax.tree.leaves(params)
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        w.called[id(array)] = jax.tree_util.keystr(path[-1:], simple=True)
    avals = traced.in_avals[len(values) :]
    ids = network.is_row and avals[0].dtype != np.float32
    names = [one.name or ("ids" if ids else "xs") for one in network.inputs]
    names += ["lengths"] * lengths + begin
    infos = []
    for i, (name, aval) in enumerate(zip(names, avals, strict=True)):
        wide = ids and i == 0
        infos.append(w.add_input(name, np.int64 if wide else aval.dtype, aval.shape))
        values.append(w.cast(name, aval.dtype) if wide else name)
    ends = ["ys"]
    if not network.is_row:
        ends = [*(network.names or (f"{a}_{b}" if b else a for a, b in network.outputs))]
        ends = [f"{n}_{i}" if n in names + ends[:i] else n for i, n in enumerate(ends)]
    ends = [w.claim(name) for name in (*ends, *(f"{name}_out" for name in begin))]
    outputs = dict(zip(ends, w.run(traced, values), strict=True))
    operators = [w.onnx.helper.make_opsetid("", OPSET)]
    proto = w.onnx.helper.make_model(
        w.graph(infos, outputs, traced.out_avals),
        producer_name="rnnjax",
        producer_version=rnnjax.__version__,
        opset_imports=operators,
        # The oldest format that has these operators, for the sake of old runtimes.
        ir_version=w.onnx.helper.find_min_ir_version_for(operators),
    )
    try:
        w.onnx.checker.check_model(proto, full_check=True)
    except w.onnx.shape_inference.InferenceError as error:  # of a type that an operator has not
        why = str(error).splitlines()[0]
        raise InteropError(f"{why}; write the model by rnnjax.interop.export") from error
    return proto


def _names(states: Any) -> list[str]:
    """Names of states for the inputs of a graph."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(states)]
    keys = [[jax.tree_util.keystr((one,), simple=True) for one in path] for path in paths]
    return ["_".join([row, *(_SHORT.get(n, n) for n in more or ["state"])]) for row, *more in keys]


_SHORT = {"hidden": "h", "cell": "c"}
"""How states are called in the names of inputs, where not by their own."""


def _float32(array: Any) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype not in (np.float32, np.float16, jnp.bfloat16):
        raise InteropError(
            f"ONNX is written in float32, but params has {array.dtype}; convert them with "
            "jax.tree.map(lambda a: a.astype('float32'), model.params)"
        )
    return array.astype(np.float32)
