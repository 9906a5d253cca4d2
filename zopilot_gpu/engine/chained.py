"""Edges of a CUDA graph by which a kernel may begin before the one ahead of it has ended. Knows CUDA's driver; no model.

Neither torch 2.6 nor Triton 3.2 launches a kernel so, but an edge can be made so afterwards, in the graph that a stream is
being captured into. Facts, from cuda.h of CUDA 12.8 and 13.0: while a capture is in progress all is permitted on its graph but
to destroy it and to remove nodes (`cuStreamGetCaptureInfo`); edges have data since 12.3 (the `_v2` of the calls on edges); a
*programmatic* edge is between two kernels, from the port that opens when all programs of the first have said so or ended
(`CUgraphEdgeData`, `CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC`). What the second may do by then: `model.kernels.chained`.

Whatever is missing or refused leaves the graph as it was.
"""

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from functools import cache

from zopilot_gpu import log

_log = log.get(__name__)
_CAPTURING, _KERNEL, _PROGRAMMATIC = 1, 0, 1  # a stream's status, a node's type, and both a port and an edge's type


class EdgeData(ctypes.Structure):
    """`CUgraphEdgeData`; an ordinary edge has zeros."""

    _fields_ = [("from_port", c_ubyte), ("to_port", c_ubyte), ("type", c_ubyte), ("reserved", c_ubyte * 5)]


class _KernelNode(ctypes.Structure):
    """`CUDA_KERNEL_NODE_PARAMS_v2`."""

    _fields_ = [
        ("function", c_void_p),
        ("sizes", c_uint * 7),
        ("parameters", c_void_p),
        ("extra", c_void_p),
        ("kernel", c_void_p),
        ("context", c_void_p),
    ]


class DriverError(Exception):
    """The driver is too old, or has refused: `call` and its code."""


class _Driver:
    """The calls; each but for its code gives nothing back."""

    def __init__(self, name: str = "libcuda.so.1") -> None:
        self._library = ctypes.CDLL(name)

    def __call__(self, name: str, *arguments: object) -> None:
        """Raises `DriverError`."""
        try:
            code = getattr(self._library, name)(*arguments)
        except AttributeError as error:
            raise DriverError(f"{name} is not in this driver") from error
        if code:
            raise DriverError(f"{name}: error {code}")


_driver = cache(_Driver)


def chain(stream: int, waiting: frozenset[str]) -> int:
    """Makes programmatic all edges from a kernel to one of those that wait, in the graph that `stream` is captured into.

    Args:
        stream: its handle.
        waiting: names of kernels.

    Returns:
        How many these are; 0 where the driver does not do it.

    Raises:
        RuntimeError: edges were taken away and could not be put back: the graph must not be used.
    """
    try:
        graph = captured(stream)
        edges = [(one, other) for one, other, data in edges_of(graph) if data.type == 0 and _is_kernel(one)]
        edges = [(one, other) for one, other in edges if _is_kernel(other) and _name(other) in waiting]
        if edges:
            _replace(graph, edges)
    except (DriverError, OSError) as error:
        _log.info("graph_not_chained", problem=str(error))
        return 0
    return len(edges)


def edges_of(graph: c_void_p) -> list[tuple[int, int, EdgeData]]:
    """All edges of a graph: from, to, data."""
    count = c_size_t()
    _driver()("cuGraphGetEdges_v2", graph, None, None, None, byref(count))
    ones, others, data = (c_void_p * count.value)(), (c_void_p * count.value)(), (EdgeData * count.value)()
    _driver()("cuGraphGetEdges_v2", graph, ones, others, data, byref(count))
    return list(zip(ones, others, data, strict=True))


def _replace(graph: c_void_p, edges: list[tuple[int, int]]) -> None:
    count = len(edges)
    pair = (c_void_p * count)(*[one for one, _ in edges]), (c_void_p * count)(*[other for _, other in edges])
    chained = (EdgeData * count)(*[EdgeData(from_port=_PROGRAMMATIC, type=_PROGRAMMATIC)] * count)
    _driver()("cuGraphRemoveDependencies_v2", graph, *pair, None, c_size_t(count))
    try:
        _driver()("cuGraphAddDependencies_v2", graph, *pair, chained, c_size_t(count))
    except DriverError:
        try:
            _driver()("cuGraphAddDependencies_v2", graph, *pair, None, c_size_t(count))
        except DriverError as error:
            raise RuntimeError(f"a graph has lost its order: {error}") from error
        raise


def captured(stream: int) -> c_void_p:
    """The graph that a stream is being captured into."""
    status, number, graph = c_int(), c_uint64(), c_void_p()
    _driver()("cuStreamGetCaptureInfo_v2", c_void_p(stream), byref(status), byref(number), byref(graph), None, None)
    if status.value != _CAPTURING:
        raise DriverError("the stream is not being captured")
    return graph


def _is_kernel(node: int) -> bool:
    kind = c_int()
    _driver()("cuGraphNodeGetType", c_void_p(node), byref(kind))
    return kind.value == _KERNEL


def _name(node: int) -> str:
    """Of the kernel; as it was compiled."""
    found, name = _KernelNode(), c_char_p()
    _driver()("cuGraphKernelNodeGetParams_v2", c_void_p(node), byref(found))
    if found.function:
        _driver()("cuFuncGetName", byref(name), c_void_p(found.function))
    else:
        _driver()("cuKernelGetName", byref(name), c_void_p(found.kernel))
    return (name.value or b"").decode(errors="replace")
