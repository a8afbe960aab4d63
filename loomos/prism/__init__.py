"""Prism: whether a model is good enough, said honestly."""
