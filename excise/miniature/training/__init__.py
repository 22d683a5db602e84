"""Trains the miniature from its seed: drawings, autoencoder, diffusion model, oracles, mini-CLIP."""
