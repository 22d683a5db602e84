"""Trains the miniature from nothing but its seed: drawings, autoencoder, diffusion model, oracles, mini-CLIP."""
