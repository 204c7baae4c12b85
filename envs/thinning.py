"""Thins visual meshes of a compiled MuJoCo model: software rendering is bound by triangles, not by pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

RELATIVE_CELL = 0.035
"""Edge of the cubes whose vertices become one, in radii of the mesh: an arm may be coarser than a cup."""
SMALLEST_CELL, LARGEST_CELL = 0.002, 0.010


def thin_visual_meshes(model: Any, relative_cell: float = RELATIVE_CELL) -> float:
    """Merge the vertices of each visual mesh within small cubes and drop the triangles that vanish.

    Works on the model in place, before a renderer uploads it. Meshes that collide are left alone, masses were settled
    when the model was compiled, and vertices stay where they are: physics is the same bit for bit.

    Returns:
        The fraction of triangles that are left.
    """
    is_mesh = model.geom_dataid >= 0
    solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    visual = np.setdiff1d(model.geom_dataid[is_mesh & ~solid], model.geom_dataid[is_mesh & solid])
    before = int(model.mesh_facenum.sum())
    for mesh in visual:
        radius = float(model.geom_rbound[model.geom_dataid == mesh].max())
        _thin(model, int(mesh), float(np.clip(relative_cell * radius, SMALLEST_CELL, LARGEST_CELL)))
    return int(model.mesh_facenum.sum()) / max(before, 1)


def _thin(model: Any, mesh: int, cell: float) -> None:
    start, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    first, faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    representative = _representatives(np.asarray(model.mesh_vert[start : start + count], dtype=np.float64), cell)
    block = slice(first, first + faces)
    merged = representative[model.mesh_face[block]]
    kept = _distinct_triangles(merged)
    for table, values in (
        (model.mesh_face, merged),
        (model.mesh_facenormal, model.mesh_facenormal[block].copy()),
        (model.mesh_facetexcoord, model.mesh_facetexcoord[block].copy()),
    ):
        table[first : first + len(kept)] = values[kept]
    model.mesh_facenum[mesh] = len(kept)


def _representatives(vertices: np.ndarray, cell: float) -> np.ndarray:
    """For each vertex the index of the one that stands for its cube: the nearest to the mean of the cube's vertices."""
    _, cube = np.unique(np.floor(vertices / cell).astype(np.int64), axis=0, return_inverse=True)
    cube = cube.reshape(-1)
    sizes = np.bincount(cube)
    means = np.stack([np.bincount(cube, vertices[:, axis]) / sizes for axis in range(3)], axis=1)
    distance = np.linalg.norm(vertices - means[cube], axis=1)
    order = np.lexsort((distance, cube))
    nearest = order[np.searchsorted(cube[order], np.arange(len(sizes)))]
    return np.asarray(nearest[cube])


def _distinct_triangles(faces: np.ndarray) -> np.ndarray:
    """Rows (ascending) of triangles with three different corners, one of each set of equals; sides are told apart."""
    a, b, c = faces.T
    proper = np.flatnonzero((a != b) & (b != c) & (c != a))
    turn = faces[proper].argmin(axis=1)
    turned = np.stack([faces[proper, (turn + shift) % 3] for shift in range(3)], axis=1)
    _, rows = np.unique(turned, axis=0, return_index=True)
    return np.sort(proper[rows])
