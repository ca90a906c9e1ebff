"""What the drawn data sets show: shapes in colors, roads, one thing that stands out."""

from __future__ import annotations

import numpy as np

Rng = np.random.Generator

# Red, green and blue of the ten classes of objects and of the twelve of roads (void last).
_OBJECT_COLORS = np.array(
    [(220, 60, 50), (60, 190, 70), (60, 80, 220), (220, 200, 50), (190, 60, 200)], dtype=np.float64
)
_ROAD_COLORS = np.array(
    [
        (140, 180, 230),
        (150, 110, 80),
        (200, 200, 200),
        (90, 80, 95),
        (175, 145, 165),
        (50, 120, 50),
        (230, 210, 60),
        (120, 75, 40),
        (40, 50, 170),
        (220, 80, 60),
        (60, 200, 200),
        (20, 20, 20),
    ],
    dtype=np.float64,
)
_SKY, _BUILDING, _POLE, _ROAD, _PAVEMENT, _TREE, _SIGN, _FENCE, _CAR, _PERSON, _CYCLIST, _VOID = range(12)


def draw_object(label: int, rng: Rng) -> np.ndarray:
    """Return a 32×32 picture of class 0 to 9: a full or a hollow shape in one of five colors."""
    rows, columns = _grid(32, 32)
    row, column = rng.uniform(11, 21, 2)
    radius = rng.uniform(7, 10)
    y, x = (rows - row) / radius, (columns - column) / radius
    inside = _shape(label % 5, y, x)
    if label >= 5:
        inside &= ~_shape(label % 5, y / 0.55, x / 0.55)
    ground = rng.uniform(60, 190, 3)
    ground = ground.mean() + 0.25 * (ground - ground.mean())
    color = np.clip(_OBJECT_COLORS[label % 5] + rng.normal(0, 18, 3), 0, 255)
    picture = np.where(inside[..., None], color, ground)
    return _noisy(picture, 14, rng)


def draw_road(height: int, width: int, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture ``(height, width, 3)`` of a road and its classes ``(height, width)``, as CamVid numbers them."""
    rows, columns = _grid(height, width)
    y, x = rows / height, columns / width
    horizon, middle = rng.uniform(0.35, 0.45), rng.uniform(0.4, 0.6)
    mask = np.full((height, width), _SKY, dtype=np.uint8)
    mask[(y > horizon - rng.uniform(0.15, 0.3)) & (abs(x - middle) > 0.12)] = _BUILDING
    mask[y > horizon] = _PAVEMENT
    mask[(y > horizon) & (abs(x - middle) < 0.08 + 0.7 * (y - horizon))] = _ROAD
    side = rng.permutation([0.12, 0.3, 0.7, 0.88]) + rng.uniform(-0.04, 0.04, 4)
    mask[((y - horizon + 0.1) / 0.2) ** 2 + ((x - side[0]) / 0.1) ** 2 < 1] = _TREE
    mask[(abs(y - horizon - 0.04) < 0.05) & (abs(x - side[1]) < 0.12)] = _FENCE
    mask[(y > 0.12) & (y < horizon + 0.08) & (abs(x - side[2]) < 0.02)] = _POLE
    mask[(abs(y - 0.14) < 0.07) & (abs(x - side[2]) < 0.06)] = _SIGN
    moving = (_CAR, 0.1, 0.09), (_PERSON, 0.11, 0.035), (_CYCLIST, 0.08, 0.055)
    for kind, tall, wide in moving:
        if rng.random() < 0.85:
            at, across = rng.uniform(horizon + 0.1, 0.88), rng.uniform(0.1, 0.9)
            mask[(abs(y - at) < tall) & (abs(x - across) < wide)] = kind
    mask[(abs(y - rng.uniform(0, 1)) < 0.06) & (abs(x - rng.uniform(0, 1)) < 0.06)] = _VOID
    light = rng.uniform(0.8, 1.15)
    return _noisy(light * _ROAD_COLORS[mask], 10, rng), mask


def draw_salient(height: int, width: int, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture ``(height, width, 3)`` of a bright shape on stripes, and where the shape is (1)."""
    rows, columns = _grid(height, width)
    side = min(height, width)
    radius = side * rng.uniform(0.2, 0.35)
    row, column = rng.uniform(0.35, 0.65) * height, rng.uniform(0.35, 0.65) * width
    mask = _shape(int(rng.integers(5)), (rows - row) / radius, (columns - column) / radius).astype(np.uint8)
    ways = rng.uniform(-0.8, 0.8, 2)
    stripes = 20 * np.sin(ways[0] * rows + ways[1] * columns)
    ground = rng.uniform(40, 110, 3) + stripes[..., None]
    color = rng.permutation([230.0, 190.0, 120.0])
    return _noisy(np.where(mask[..., None] == 1, color, ground), 12, rng), mask


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:height, :width]
    return rows + 0.5, columns + 0.5


def _shape(kind: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return where one of five shapes of radius 1 is: disc, square, triangle, cross, diamond."""
    if kind == 0:
        return y**2 + x**2 < 1
    if kind == 1:
        return np.maximum(abs(y), abs(x)) < 0.85
    if kind == 2:
        return (abs(x) < (y + 1) / 2) & (y < 0.9)
    if kind == 3:
        return (np.minimum(abs(y), abs(x)) < 0.35) & (np.maximum(abs(y), abs(x)) < 1)
    return abs(y) + abs(x) < 1.1


def _noisy(picture: np.ndarray, deviation: float, rng: Rng) -> np.ndarray:
    return np.clip(picture + rng.normal(0, deviation, picture.shape), 0, 255).astype(np.uint8)
