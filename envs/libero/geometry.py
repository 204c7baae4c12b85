"""Collision geometry of a MuJoCo scene, for planning grasps on privileged state."""

from __future__ import annotations

from typing import Any

import numpy as np

_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)


class CollisionGeometry:
    """Bounds and overlaps of the geoms that take part in collisions.

    Boxes are exact, meshes give their vertices as bounds and their bounding box for overlaps.
    """

    def __init__(self, model: Any, data: Any) -> None:
        self._model, self._data = model, data
        solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        is_plane = model.geom_type == 0
        self._solid = np.flatnonzero(solid & ~is_plane)
        self._local: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def geoms_below(self, body: int) -> np.ndarray:
        """Ids of the solid geoms of `body` and of every body attached below it."""
        parents = self._model.body_parentid
        members = {body}
        for candidate in range(body + 1, len(parents)):  # MuJoCo orders parents before children
            if parents[candidate] in members:
                members.add(candidate)
        return np.array([geom for geom in self._solid if self._model.geom_bodyid[geom] in members], dtype=int)

    def vertices(self, geoms: np.ndarray) -> np.ndarray:
        """World positions (n, 3) in m of the corners (boxes) or vertices (meshes) of `geoms`."""
        if geoms.tobytes() not in self._local:
            parts = [self._vertices(int(geom)) for geom in geoms]
            owner = np.repeat(geoms, [len(part) for part in parts])
            self._local[geoms.tobytes()] = owner, np.concatenate(parts)
        owner, local = self._local[geoms.tobytes()]
        rotations = self._data.geom_xmat[owner].reshape(-1, 3, 3)
        return np.asarray(np.einsum("nij,nj->ni", rotations, local) + self._data.geom_xpos[owner])

    def _vertices(self, geom: int) -> np.ndarray:
        """Vertices in the geom's own frame."""
        model = self._model
        mesh = model.geom_dataid[geom]
        if mesh >= 0:
            start = model.mesh_vertadr[mesh]
            return np.asarray(model.mesh_vert[start : start + model.mesh_vertnum[mesh]], dtype=np.float64)
        bounds = model.geom_aabb[geom]
        return np.asarray(bounds[:3] + bounds[3:] * _CORNERS)

    def overlaps(self, points: np.ndarray, ignored: np.ndarray, margin: float) -> int:
        """Number of `points` (n, 3) within `margin` m of a solid geom that is not in `ignored`."""
        geoms = np.setdiff1d(self._solid, ignored)
        distance = np.linalg.norm(self._data.geom_xpos[geoms] - points.mean(0), axis=1)
        return int(self.inside(points, geoms[distance < 0.3 + self._model.geom_rbound[geoms]], margin).sum())

    def inside(self, points: np.ndarray, geoms: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """Which of `points` (n, 3) are within `margin` m of one of `geoms`: bool (n,)."""
        rotations = self._data.geom_xmat[geoms].reshape(-1, 3, 3)
        local = np.einsum("gni,gij->gnj", points[None] - self._data.geom_xpos[geoms][:, None], rotations)
        bounds = self._model.geom_aabb[geoms]
        within = np.abs(local - bounds[:, None, :3]) <= bounds[:, None, 3:] + margin
        return np.asarray(within.all(-1).any(0))


def grid(low: tuple[float, float, float], high: tuple[float, float, float], spacing: float = 0.01) -> np.ndarray:
    """Points (n, 3) that fill a box, at most `spacing` m apart, corners included."""
    axes = [np.linspace(a, b, max(2, int(np.ceil((b - a) / spacing)) + 1)) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
