"""What the shift engine takes, in evals; knows no tensors, so that plans can ask."""

from __future__ import annotations

# Minibatch gradients in the subspace, beside the signs of their mean, where nothing else is known to start
# from. Beside the means of activations they gain less than what they cost gains as steps of polish.
GRADIENTS = 4
SCALES_OF_STEP = (0.25, 0.5, 1.0, 1.5)  # lengths of the Gauss-Newton step that are tried


def learning_evals(batch: int, fixed: int, steps: int, pieces: int, halves: int) -> int:
    """Evals of the Gauss-Newton step over `fixed` examples, its line search, and `steps` of polish.

    A forward of one half of one example is one eval, a backward two; `pieces` are those of the start.
    """
    gradients = 0 if pieces else GRADIENTS
    columns = pieces or GRADIENTS + 1
    start = fitting_evals(fixed, columns, halves) + 3 * gradients * batch * halves
    measured = 2 * fixed * halves  # where the polish ended, and the mean of its second half
    return start + 3 * steps * batch * halves + measured


def fitting_evals(fixed: int, columns: int, halves: int) -> int:
    """Evals of a search over `columns` alone."""
    return halves * fixed * (1 + columns + len(SCALES_OF_STEP))
