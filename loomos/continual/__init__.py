"""Continual learning: which samples are new, what they are mixed with, what is remembered."""
