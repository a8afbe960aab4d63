"""Measurements side by side against a named peer or limit, in one run; each prints a ratio."""
