"""Closed-form least squares on linear maps that read text (METHODS, section 4): tensors in, tensors out.

One problem serves every matrix of one text width: find the W nearest to W_0 that sends the columns C to the
wanted outputs V*,

    min_W  |(W C - V*) S^(1/2)|^2 + ridge |W - W_0|^2
    W - W_0 = (V* - W_0 C) R,    R = S (ridge I_k + C^T C S)^-1 C^T                              (Woodbury)

(UCE, Gandikota et al. 2024, eq. 7, whose dense form inverts a d x d matrix for each W). R does not depend on
W, so it is found once, in float64, by a k x k or a d x d system, whichever is smaller. Preserved concepts are
columns whose wanted output is W_0 c: their residual is zero, so they cost no rank. Where every wanted output
is W_0 times some embedding a, as in all erasure to an anchor, the change is W_0 (A - C) R: one d x d map for
all matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Solution:
    """The half of a closed-form edit that all matrices of one text width share.

    `right` is R for the edited columns alone, (k, d) float64; the rank of every change is at most k.
    """

    columns: Tensor  # C, (d, k) float64: embeddings of the edited columns
    right: Tensor

    def change(self, weight: Tensor, wanted: Tensor) -> Tensor:
        """W - W_0 for W_0 `weight` (out, d) and the wanted outputs V* (out, k); float32, as deltas are."""
        return ((wanted.double() - weight.double() @ self.columns) @ self.right).float()

    def text_map(self, anchors: Tensor) -> Tensor:
        """M (d, d) float64 with W - W_0 = W_0 M, when each wanted output is W_0 times a column of `anchors`.

        `anchors` is A, (d, k). A change made with M needs no V* and one product for each matrix.
        """
        return (anchors.double() - self.columns) @ self.right


def solve(
    columns: Tensor,
    *,
    ridge: float,
    weights: Tensor | None = None,
    preserved: Tensor | None = None,
    preserved_weights: Tensor | None = None,
    basis: Tensor | None = None,
) -> Solution:
    """Find R for the edited `columns` (d, k), with `preserved` columns (d, m) that must keep their outputs.

    `weights` (k,) and `preserved_weights` (m,) are the diagonal of S, 1 where not given. `basis` (d, r), from
    `preserved_basis`, is a subspace on which no matrix may change at all (SPEED 2026: the change is projected
    onto the null space of what is preserved). Raises ValueError for a ridge that is not positive: without it
    collinear columns have no unique answer.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, it is {ridge}")
    edited = columns.double()
    scale = _root(weights, edited)
    scaled = [free_of(edited, basis) * scale]
    if preserved is not None and preserved.shape[1]:
        kept = preserved.double()
        scaled.append(free_of(kept, basis) * _root(preserved_weights, kept))
    # With B = C S^(1/2) both forms are symmetric: R = S^(1/2) (ridge I + B^T B)^-1 B^T
    #                                                = S^(1/2) B^T (ridge I + B B^T)^-1.
    joint = torch.cat(scaled, dim=1)
    width, total = joint.shape
    own = scaled[0].shape[1]
    if total <= width:
        picked = torch.eye(total, own, dtype=torch.float64, device=joint.device)
        right = (joint @ _positive_solve(joint.T @ joint, ridge, picked)).T
    else:
        right = _positive_solve(joint @ joint.T, ridge, scaled[0]).T
    return Solution(edited, right * scale[:, None])


def edit_columns(
    weight: Tensor, columns: Tensor, wanted: Tensor, weights: Tensor | None = None, *, ridge: float
) -> Tensor:
    """W - W_0 of one matrix (out, d), for columns C (d, k) and wanted outputs V* (out, k); float32."""
    return solve(columns, ridge=ridge, weights=weights).change(weight, wanted)


@dataclass(frozen=True)
class Preserved:
    """A subspace of embeddings on which nothing may change, and how much of what was asked for it holds."""

    basis: Tensor  # (d, r) float64, orthonormal
    energy: float  # share of the preserved columns' squared norm inside; 1.0 = all of it, to rounding


def preserved_basis(preserved: Tensor, *, share: float = 0.5) -> Preserved:
    """Orthonormal basis of the preserved columns (d, m), for `solve(basis=...)`.

    Columns are exactly unmoved as long as their rank is at most `share` of the width. Beyond that the
    directions of most energy are kept and the rest left to the edit, which would have no room otherwise
    (SPEED cuts the same spectrum at a threshold).
    """
    kept = preserved.double()
    width = kept.shape[0]
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, it is {share}")
    vectors, values, _ = torch.linalg.svd(kept, full_matrices=False)
    floor = values[:1] * max(kept.shape) * torch.finfo(torch.float64).eps
    rank = min(int((values > floor).sum()), max(1, int(share * width)))
    total = values.square().sum()
    energy = float(values[:rank].square().sum() / total) if float(total) > 0 else 1.0
    return Preserved(vectors[:, :rank].contiguous(), energy)


def revived(gram: Tensor, text_map: Tensor, columns: Tensor, *, ridge: float) -> Tensor:
    """Embeddings (d, k) that bring back, through the edited matrices, what `columns` (d, k) gave before.

    RECE (Gong et al. 2024), eq. 8: c' = (ridge I + sum W^T W)^-1 (sum W^T W_0) c, with W = W_0 (I + M) and M
    the `text_map`; `gram` is the sum of W_0^T W_0 over all matrices. `ridge` is a share of its mean
    eigenvalue: the smaller, the longer the embeddings that may be found.
    """
    width = len(gram)
    edited = torch.eye(width, dtype=torch.float64, device=gram.device) + text_map
    back = edited.T @ gram
    floor = ridge * float(gram.diagonal().mean())
    return _positive_solve(back @ edited, floor, back @ columns.double())


def come_back(gram: Tensor, text_map: Tensor, columns: Tensor, found: Tensor) -> float:
    """How much of what was erased `found` (d, k) brings back: 1 = all of it, 0 = no more than the words do.

    One minus the distance to the former outputs of `columns`, as a share of what these words' outputs moved.
    """
    left = found + text_map @ found - columns.double()
    moved = text_map @ columns.double()
    still, all_of_it = (float((part * (gram @ part)).sum()) for part in (left, moved))
    return 1.0 - math.sqrt(max(still, 0.0) / max(all_of_it, 1e-30))


def free_of(columns: Tensor, basis: Tensor | None) -> Tensor:
    """The part of each column (d, k) outside the orthonormal `basis` (d, r)."""
    return columns if basis is None else columns - basis @ (basis.T @ columns)  # never builds d x d


def _root(weights: Tensor | None, columns: Tensor) -> Tensor:
    """Square roots of the diagonal of S, (k,) float64."""
    if weights is None:
        return torch.ones(columns.shape[1], dtype=torch.float64, device=columns.device)
    if bool((weights < 0).any()):
        raise ValueError("weights of columns must not be negative")
    return weights.to(columns).sqrt()


def _positive_solve(gram: Tensor, ridge: float, right: Tensor) -> Tensor:
    """(gram + ridge I)^-1 right for a symmetric positive semidefinite gram."""
    gram.diagonal().add_(ridge)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))
