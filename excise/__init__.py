"""Excise, a model-editing compiler: the front door."""
