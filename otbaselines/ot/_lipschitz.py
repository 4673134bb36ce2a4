"""What a small cost matrix allows: the structure of a finite metric, and its extreme Lipschitz functions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch as th

from otbaselines.ot.costs import validate_cost

# The number of extreme functions of a generic metric is C(2n-2, n-1): 3,432 at eight points, 12,870 at nine.
MAX_ENUMERATED = 8
RELATIVE_TOLERANCE = 1e-9

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MetricStructure:
    """
    :param kind: which evaluation of W1 the metric allows
    :param scale: the common distance of a 0/1 metric
    :param order: the points of a line, from end to end
    :param gaps: distances between neighbours on the line
    :param functions: one of each pair of extreme 1-Lipschitz functions f, -f, as columns, shape ``(n, K)``
    """

    kind: Literal["zero-one", "line", "vertices", "general"]
    scale: float = 1.0
    order: npt.NDArray[np.int64] | None = None
    gaps: FloatArray | None = None
    functions: FloatArray | None = None


def metric_structure(cost: th.Tensor) -> MetricStructure:
    """
    :param cost: shape ``(n, n)``; it is read to the host, and each content is analysed once
    :return: its structure
    :raises ValueError: if it is negative, asymmetric or not finite
    """
    matrix = cost.detach().cpu()
    tolerance = RELATIVE_TOLERANCE if matrix.dtype == th.float64 else 1e-6
    return _analyse(matrix.double().numpy().tobytes(), matrix.shape[0], tolerance)


@lru_cache(maxsize=64)
def _analyse(content: bytes, n: int, tolerance: float) -> MetricStructure:
    matrix = np.frombuffer(content, dtype=np.float64).reshape(n, n)
    validate_cost(th.from_numpy(matrix.copy()), symmetric=True)
    unit = float(matrix.max())
    if unit > 0 and not 1e-100 < unit < 1e100:
        # The hull's own arithmetic ends long before float64 does.
        raise ValueError(f"`cost` must have its largest entry between 1e-100 and 1e100, got {unit:g}; change the unit")
    slack = tolerance * max(unit, np.finfo(np.float64).tiny)
    if np.abs(np.diag(matrix)).max() > slack:
        return MetricStructure("general")
    off_diagonal = matrix[~np.eye(n, dtype=bool)]
    if n == 1 or np.ptp(off_diagonal) <= slack:
        return MetricStructure("zero-one", scale=float(off_diagonal.mean()) if n > 1 else 0.0)
    line = _line(matrix, slack)
    if line is not None:
        return line
    triangle = (matrix[:, None, :] + matrix.T[None, :, :]).min(-1)
    is_metric = bool((matrix <= triangle + slack).all()) and off_diagonal.min() > slack
    if is_metric and n <= MAX_ENUMERATED:
        return MetricStructure("vertices", functions=_extreme_functions(matrix, tolerance))
    return MetricStructure("general")


def _line(matrix: FloatArray, slack: float) -> MetricStructure | None:
    # The point farthest from any point is an end, and on a line the distances from an end are the coordinates.
    end = int(matrix[0].argmax())
    positions = matrix[end]
    if np.abs(np.abs(positions[:, None] - positions[None, :]) - matrix).max() > slack:
        return None
    order = np.argsort(positions, kind="stable")
    return MetricStructure("line", order=order, gaps=np.diff(positions[order]))


def _extreme_functions(matrix: FloatArray, tolerance: float) -> FloatArray:
    r"""
    Vertices of :math:`\{f : f_i - f_j \le d_{ij}, f_0 = 0\}`: facets of the hull of its constraints, by polar duality.

    A facet :math:`\langle h, z\rangle \le 1` of the hull of the points :math:`(e_i - e_j) / d_{ij}` is the vertex h.
    """
    from scipy.spatial import ConvexHull

    n = len(matrix)
    first, second = np.nonzero(~np.eye(n, dtype=bool))
    points = np.zeros((len(first), n))
    rows = np.arange(len(first))
    points[rows, first] += 1 / matrix[first, second]
    points[rows, second] -= 1 / matrix[first, second]
    if n == 2:
        return np.array([[0.0], [matrix[0, 1]]])
    equations = ConvexHull(points[:, 1:]).equations
    functions = np.hstack([np.zeros((len(equations), 1)), equations[:, :-1] / -equations[:, -1:]])
    # Facets that are no simplices come in several pieces with one equation; f and -f give one absolute value.
    resolution = max(tolerance, 1e-9) * 10 * matrix.max()
    centred = functions - functions.mean(1, keepdims=True)
    leading = centred[np.arange(len(centred)), (np.abs(centred) > resolution).argmax(1)]
    sign = np.sign(leading)
    _, unique = np.unique(np.round(functions * sign[:, None] / resolution).astype(np.int64), axis=0, return_index=True)
    chosen: FloatArray = functions[np.sort(unique)].T
    return np.ascontiguousarray(chosen)
