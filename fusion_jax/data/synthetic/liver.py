"""Synthetic abdominal CT with a liver whose surface is smooth or nodular, and blood markers of portal hypertension."""

import dataclasses
import json

import numpy as np
from jaxtyping import Float

from fusion_jax.data.cohort import Cohort, Columns, Lazy
from fusion_jax.data.image import Image
from fusion_jax.data.synthetic.draws import case_stream, checked_n, column_stream, normal_scores, proportional
from fusion_jax.data.synthetic.fields import blend, edge, grid, smooth_noise
from fusion_jax.data.synthetic.truth import Synthetic, Truth

__all__ = ["LIVER_LABELS", "MARKERS", "canonical_affine", "portal_hypertension_ct"]

LIVER_LABELS = {"liver": 1, "left lateral segment": 2, "gallbladder": 3, "inferior vena cava": 4}
"""Values of the source `labels`; the liver is 1 and 2 together."""

MARKERS = ("apri", "albumin_g_dl", "platelets_k_ul")

HYPERTENSIVE, NORMAL = 119, 79
HVPG_LIMIT = 5.0
"""mmHg; at and above it, portal venous pressure is too high."""

# Correlations of normal scores: log HVPG, nodularity, log AST, albumin, log platelets.
VARIABLES = ("hvpg", "nodularity", "ast", "albumin", "platelets")
CORRELATION = np.array(
    [
        (1.0, 0.35, 0.12, -0.25, -0.30),
        (0.35, 1.0, 0.05, -0.15, -0.15),
        (0.12, 0.05, 1.0, -0.20, -0.05),
        (-0.25, -0.15, -0.20, 1.0, 0.20),
        (-0.30, -0.15, -0.05, 0.20, 1.0),
    ]
)
AST_LIMIT = 40.0
"""U/L, upper limit of normal in the APRI."""


def canonical_affine(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Float[np.ndarray, "4 4"]:
    """Matrix of a grid in canonical order whose centre is the origin of the patient.

    Args:
      shape: `(d, h, w)`.
      spacing: `(dz, dy, dx)` in mm.

    Returns:
      Voxel index `(d, h, w, 1)` to `(x, y, z, 1)` in mm, RAS+.

    Example:
      >>> canonical_affine((3, 3, 3), (5.0, 2.0, 1.0)) @ [0, 1, 1, 1]
      array([ 0.,  0., -5.,  1.])
    """
    dz, dy, dx = spacing
    affine = np.array([(0, 0, -dx, 0), (0, -dy, 0, 0), (dz, 0, 0, 0), (0, 0, 0, 1)], np.float64)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def portal_hypertension_ct(
    n: int = 198,
    *,
    shape: tuple[int, int, int] = (32, 80, 96),
    spacing: tuple[float, float, float] = (6.0, 3.5, 3.5),
    seed: int = 0,
) -> Synthetic:
    r"""CT with labels of liver, gallbladder and vena cava, and APRI, albumin and platelets; is HVPG at least 5 mmHg?

    At n = 198 there are 119 positive and 79 negative patients. Logarithm of HVPG, nodularity of the liver's surface,
    log AST, albumin and log platelets are normal with a fixed correlation matrix; APRI follows from AST and platelets,
    ``apri = 100 (ast / 40) / platelets``. HVPG is known to the truth alone, so that with scores :math:`z` of a source

    .. math:: P(\text{HVPG} \ge 5 \mid z) = \Phi\bigl((r^T R^{-1} z - c) / \sqrt{1 - r^T R^{-1} r}\bigr)

    is exact for image, markers and both. The relief of the surface has the standard deviation
    `hidden["nodularity_mm"]`, ``1.4 exp(0.5 z)``, over bumps of 10 mm: 0.5 mm for smooth livers, 4 mm for nodular ones.
    Enlarge the grid (`shape`, `spacing`) where a sharper surface is wanted; the body stays in the middle.

    Measured on 200,000 patients (standard error 0.001): AUC 0.661 of the image, 0.667 of the markers, 0.714 of both.

    Not realistic: a liver of two ellipsoids, no vessels inside, no ribs, one contrast phase; spleen, ascites and
    varices, by which a radiologist would know, do not follow the pressure; marker marginals are log-normal.

    Args:
      n: number of patients, at least 10.
      shape: `(d, h, w)` of the volume.
      spacing: `(dz, dy, dx)` in mm.
      seed: of all draws.

    Returns:
      Cohort with the sources `ct` in HU, `labels` (values `LIVER_LABELS`), both of shape `(d, h, w, 1)` in canonical
      order with an affine, and `clinical`, the columns `MARKERS`; label `hvpg_at_least_5`. `hvpg_mmhg` and `ast_u_l`
      are `never` columns.

    Raises:
      ValueError: fewer than 10 patients, or a grid smaller than the liver (150 x 180 x 220 mm).

    Example:
      >>> cohort, truth = portal_hypertension_ct(seed=1)
      >>> len(cohort), int(cohort.label.sum()), cohort.sources["ct"][0].shape, cohort.columns("input")
      (198, 119, (32, 80, 96, 1), ('apri', 'albumin_g_dl', 'platelets_k_ul'))

    References:
      Counts and range of platelets: Wang et al. 2023; correlations and laws are ours.
    """
    import pandas as pd
    from scipy.special import ndtri

    n = checked_n(n, 10, "portal_hypertension_ct")
    extent = tuple(count * step for count, step in zip(shape, spacing, strict=True))
    if any(found < needed for found, needed in zip(extent, (150, 180, 220), strict=True)):
        raise ValueError(f"the grid spans {extent} mm; expected at least 150 x 180 x 220 mm, to hold a liver.")
    negative = int(proportional([NORMAL, HYPERTENSIVE], n)[0])
    scores = _correlated_scores(n, seed)
    order = np.sort(scores[:, 0])
    limit = (order[negative - 1] + order[negative]) / 2
    label = (scores[:, 0] > limit).astype(np.int64)
    # Where 79 of 198 lie below 5 mmHg; a standard deviation of 0.65 puts the highest of 198 near 35.
    hvpg = np.exp(np.log(HVPG_LIMIT) + 0.65 * (scores[:, 0] - limit))
    nodularity = 1.4 * np.exp(0.5 * scores[:, 1])
    platelets = np.clip(np.exp(np.log(140) + 0.55 * scores[:, 4]), 4, 789)
    ast = np.exp(np.log(52) + 0.6 * scores[:, 2])
    table = pd.DataFrame(
        {
            "apri": np.round(100 * (ast / AST_LIMIT) / platelets, 3),
            "albumin_g_dl": np.round(np.clip(3.5 + 0.6 * scores[:, 3], 1.2, 5.6), 2),
            "platelets_k_ul": np.round(platelets, 1),
            "ast_u_l": np.round(ast, 1),
            "hvpg_mmhg": np.round(np.where(label == 1, np.maximum(hvpg, 5.0), np.minimum(hvpg, 4.9)), 1),
            "hvpg_at_least_5": label,
        },
        index=pd.Index([f"liver_{i:04d}" for i in range(n)], dtype=object),
    )
    identity = json.dumps(["portal_hypertension_ct", seed, n, shape, spacing])
    phantom = _Abdomen(nodularity, shape, spacing, seed, "ct")
    labels = dataclasses.replace(phantom, source="labels")
    cohort = Cohort.from_arrays(
        {
            "ct": Lazy(phantom, np.arange(n), "image", identity),
            "labels": Lazy(labels, np.arange(n), "mask", f"{identity} labels"),
            "clinical": Columns(MARKERS, n),
        },
        table=table,
        roles={**dict.fromkeys(MARKERS, "input"), "hvpg_at_least_5": "label", "hvpg_mmhg": "never"},
        units={"albumin_g_dl": "g/dL", "platelets_k_ul": "K/uL", "ast_u_l": "U/L", "hvpg_mmhg": "mmHg", "ct": "HU"},
        name="synthetic portal hypertension CT",
    )
    cut = float(ndtri(NORMAL / (NORMAL + HYPERTENSIVE)))
    evidence = {
        "ct": _evidence(scores, ("nodularity",), cut)[:, None],
        "labels": _evidence(scores, ("nodularity",), cut)[:, None],
        "clinical": _evidence(scores, ("ast", "albumin", "platelets"), cut)[:, None],
    }
    together = _evidence(scores, VARIABLES[1:], cut)[:, None]
    hidden = {"hvpg_mmhg": hvpg, "nodularity_mm": nodularity, "scores": scores}
    return Synthetic(cohort, Truth(("hvpg_at_least_5",), label[:, None], evidence, together, hidden))


def _correlated_scores(n: int, seed: int) -> Float[np.ndarray, "n 5"]:
    factor = np.linalg.cholesky(CORRELATION)
    independent = np.stack([normal_scores(n, column_stream(seed, name)) for name in VARIABLES], axis=1)
    return independent @ factor.T


def _evidence(scores: np.ndarray, seen: tuple[str, ...], cut: float) -> np.ndarray:
    from scipy.special import log_ndtr

    columns = [VARIABLES.index(name) for name in seen]
    r = CORRELATION[0, columns]
    weights = np.linalg.solve(CORRELATION[np.ix_(columns, columns)], r)
    z = (scores[:, columns] @ weights - cut) / np.sqrt(1 - r @ weights)
    return log_ndtr(z) - log_ndtr(-z) - (log_ndtr(-cut) - log_ndtr(cut))


@dataclasses.dataclass(frozen=True, eq=False)
class _Abdomen:
    """Labels of an abdomen, or the CT of them."""

    nodularity: Float[np.ndarray, "n"]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    seed: int
    source: str

    def __call__(self, row: int) -> Image:
        rng = case_stream(self.seed, row)
        affine = canonical_affine(self.shape, self.spacing)
        # z grows to the head, y to the back, x to the patient's left: the axes of the array.
        z, y, x = grid(self.shape, self.spacing)
        scale = rng.uniform(0.93, 1.07)
        turn = rng.normal(0, 0.06)
        # Beyond 6 mm the thin end of the left lobe would fall into islands.
        relief = np.clip(self.nodularity[row] * self._relief(rng), -6, 6)

        right = _ellipsoid(z, y, x, (-4, 2, -62), (64 * scale, 62 * scale, 58 * scale))
        # The left lobe thins out towards its tip: an ellipsoid around a line that rises to the left.
        along = (x + 30) / (118 * scale)
        thin = np.clip(1 - 0.62 * np.clip(along, 0, 1.2), 0.12, None)
        middle = (18 + 8 * along, -42 + (6 + 90 * turn) * along)
        left = np.sqrt(
            ((z - middle[0]) / (40 * thin)) ** 2
            + ((y - middle[1]) / (30 * scale * thin)) ** 2
            + ((x - 18) / (84 * scale)) ** 2
        )
        outside = np.minimum((right - 1) * 60, (left - 1) * 26)
        distance = outside + relief
        fossa = _ellipsoid(z, y, x, (-30, -30, -18), (26, 15, 13))
        cava = np.sqrt((y - 40) ** 2 + (x + 20) ** 2) - 11 + 0 * z
        liver = np.maximum(distance, -np.minimum((fossa - 1) * 14, cava))
        labels = np.zeros(self.shape, np.uint8)
        labels[liver < 0] = LIVER_LABELS["liver"]
        # The falciform ligament: what lies to the left of it and belongs to the left ellipsoid.
        labels[(liver < 0) & (x > 8) & (left < right + 0.6)] = LIVER_LABELS["left lateral segment"]
        labels[(fossa < 1) & (distance < 12)] = LIVER_LABELS["gallbladder"]
        labels[np.broadcast_to(cava < 0, self.shape)] = LIVER_LABELS["inferior vena cava"]
        if self.source == "labels":
            return Image(labels[..., None], self.spacing, affine, "label")
        values = self._hounsfield(rng, liver, fossa, cava, (z, y, x))
        return Image(values[..., None].astype(np.float32), self.spacing, affine, "HU")

    def _relief(self, rng: np.random.Generator) -> np.ndarray:
        # Bumps of about 10 mm, given on a grid of 5 mm in all directions whatever the voxel.
        steps = [max(5.0 / step, 1.0) for step in self.spacing]
        coarse = tuple(int(np.ceil(count / step)) for count, step in zip(self.shape, steps, strict=True))
        field = smooth_noise(coarse, 2.0, rng)
        if coarse == self.shape:
            return field
        from scipy.ndimage import zoom

        factors = [count / found for count, found in zip(self.shape, coarse, strict=True)]
        return np.asarray(zoom(field, factors, order=1, mode="nearest", grid_mode=True))

    def _hounsfield(
        self, rng: np.random.Generator, liver: np.ndarray, fossa: np.ndarray, cava: np.ndarray, axes: tuple
    ) -> np.ndarray:
        z, y, x = axes
        soft = max(self.spacing[1:]) * 1.2
        depth, width = 108.0, 150.0
        body = np.sqrt((y / depth) ** 2 + (x / width) ** 2) + 0 * z
        image = np.full(self.shape, -1000.0)
        image = blend(image, -105.0, edge((body - 1) * depth, soft))
        image = blend(image, 55.0, edge((body - 0.87) * depth, soft))
        image = blend(image, -85.0, edge((body - 0.8) * depth, soft))
        image = blend(image, 45.0, edge((_ellipsoid(z, y, x, (0, 78, 0), (400, 22, 55)) - 1) * 22, soft))
        image = blend(image, 220.0, edge(np.sqrt((y - 66) ** 2 + x**2) - 17 + 0 * z, soft))
        image = blend(image, 160.0, edge(np.sqrt((y - 40) ** 2 + (x - 10) ** 2) - 10 + 0 * z, soft))
        image = blend(image, 30.0, edge((_ellipsoid(z, y, x, (10, -6, 62), (55, 34, 40)) - 1) * 36, soft))
        image = blend(image, 120.0, edge((_ellipsoid(z, y, x, (12, 36, 96), (48, 34, 25)) - 1) * 28, soft))
        image = blend(image, 105.0 + 4 * smooth_noise(self.shape, 6.0, rng), edge(liver, soft))
        image = blend(image, 12.0, edge((fossa - 1) * 14, soft) * edge(liver - 14, 2.0))
        image = blend(image, 140.0, edge(cava, soft))
        # Lung above the dome, which the liver and the heart leave free.
        dome = z - 62 + 34 * ((x + 40) / 120) ** 2 + 20 * (y / 100) ** 2
        lung = edge(-dome, soft) * edge((body - 0.8) * depth, soft) * (1 - edge(liver - 4, soft))
        spine = edge(np.sqrt((y - 66) ** 2 + x**2) - 26 + 0 * z, soft)
        image = blend(image, -850.0, lung * (1 - spine))
        noise = case_stream(self.seed, int(rng.integers(2**62)), "noise").standard_normal(self.shape)
        return np.clip(np.round(image + 12 * noise), -1024, 3071)


def _ellipsoid(
    z: np.ndarray, y: np.ndarray, x: np.ndarray, centre: tuple[float, ...], radii: tuple[float, ...]
) -> np.ndarray:
    """1 on the surface, below inside."""
    return np.sqrt(
        ((z - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 + ((x - centre[2]) / radii[2]) ** 2
    )
