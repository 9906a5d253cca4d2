"""Edges of a graph, without a driver: what can't be done leaves the graph as it was."""

import ctypes
from typing import Any

import pytest

from zopilot_gpu.engine import chained
from zopilot_gpu.engine.chained import DriverError, EdgeData, chain, edges_of

NAMES = {1: b"gemm", 2: b"down_kernel", 3: b"add_norm_kernel", 4: b"copy"}
CHAIN = [(1, 2), (2, 3), (3, 4), (9, 2)]  # 9 is no kernel
WAITING = frozenset({"down_kernel", "add_norm_kernel"})


class Graph:
    """A driver that has one graph, and refuses the calls of these names, each so many times from its n-th on."""

    def __init__(self, refused: dict[str, tuple[int, int]]) -> None:
        self.edges = dict.fromkeys(CHAIN, (0, 0))
        self._refused, self._calls = refused, dict[str, int]()

    def __call__(self, name: str, *arguments: Any) -> None:
        number = self._calls[name] = self._calls.get(name, 0) + 1
        first, count = self._refused.get(name, (1, 0))
        if first <= number < first + count:
            raise DriverError(f"{name}: error 801")
        getattr(self, name)(*arguments)

    def cuStreamGetCaptureInfo_v2(self, stream: Any, status: Any, number: Any, graph: Any, *others: Any) -> None:  # noqa: N802
        status._obj.value, graph._obj.value = int(stream.value == 7), 70

    def cuGraphGetEdges_v2(self, graph: Any, ones: Any, others: Any, data: Any, count: Any) -> None:  # noqa: N802
        for place, ((one, other), (port, kind)) in enumerate(self.edges.items() if ones else ()):
            ones[place], others[place], data[place] = one, other, EdgeData(from_port=port, type=kind)
        count._obj.value = len(self.edges)

    def cuGraphNodeGetType(self, node: Any, kind: Any) -> None:  # noqa: N802
        kind._obj.value = int(node.value == 9)

    def cuGraphKernelNodeGetParams_v2(self, node: Any, found: Any) -> None:  # noqa: N802
        if node.value % 2:
            found._obj.function = node.value
        else:
            found._obj.kernel = node.value

    def cuFuncGetName(self, name: Any, function: Any) -> None:  # noqa: N802
        name._obj.value = NAMES[function.value]

    cuKernelGetName = cuFuncGetName  # noqa: N815

    def cuGraphRemoveDependencies_v2(self, graph: Any, ones: Any, others: Any, data: Any, count: Any) -> None:  # noqa: N802
        for pair in zip(ones, others, strict=True):
            del self.edges[pair]

    def cuGraphAddDependencies_v2(self, graph: Any, ones: Any, others: Any, data: Any, count: Any) -> None:  # noqa: N802
        for place, pair in enumerate(zip(ones, others, strict=True)):
            self.edges[pair] = (data[place].from_port, data[place].type) if data else (0, 0)


def driver(monkeypatch: pytest.MonkeyPatch, **refused: tuple[int, int]) -> Graph:
    graph = Graph(refused)
    monkeypatch.setattr(chained, "_driver", lambda: graph)
    return graph


def test_edges_between_kernels_to_those_that_wait_become_programmatic(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = driver(monkeypatch)
    assert chain(7, WAITING) == 2
    assert graph.edges == {(1, 2): (1, 1), (2, 3): (1, 1), (3, 4): (0, 0), (9, 2): (0, 0)}
    assert chain(7, WAITING) == 0  # they are already
    assert sorted(data.type for _, _, data in edges_of(ctypes.c_void_p(70))) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "call",
    [
        "cuStreamGetCaptureInfo_v2",
        "cuGraphGetEdges_v2",
        "cuGraphNodeGetType",
        "cuGraphKernelNodeGetParams_v2",
        "cuFuncGetName",
        "cuGraphRemoveDependencies_v2",
        "cuGraphAddDependencies_v2",
    ],
)
def test_what_is_refused_leaves_the_graph_as_it_was(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    graph = driver(monkeypatch, **{call: (1, 1)})
    assert chain(7, WAITING) == 0
    assert graph.edges == dict.fromkeys(CHAIN, (0, 0))


def test_a_stream_that_is_not_captured_has_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = driver(monkeypatch)
    assert chain(8, WAITING) == 0
    assert graph.edges == dict.fromkeys(CHAIN, (0, 0))


def test_a_graph_without_its_order_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, cuGraphAddDependencies_v2=(1, 2))
    with pytest.raises(RuntimeError, match="lost its order"):
        chain(7, WAITING)


def test_without_a_driver_nothing_is_chained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library without these calls is as one that is too old."""
    monkeypatch.setattr(chained, "_driver", lambda: chained._Driver("libc.so.6"))
    assert chain(7, WAITING) == 0
    monkeypatch.setattr(chained, "_driver", lambda: chained._Driver("libno-such-driver.so"))
    assert chain(7, WAITING) == 0


def test_structures_are_as_large_as_in_cuda_h() -> None:
    assert ctypes.sizeof(EdgeData) == 8
    assert ctypes.sizeof(chained._KernelNode) == 72
