"""The embedded miniature: a small text-to-image model, its drawn world, its oracles and its training."""
