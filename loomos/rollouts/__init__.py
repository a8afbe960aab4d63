"""Canary rollouts: what may change in a route row, and how a stage is judged.

`rows` makes rows of rows; `judge` is a pure function of outcomes. Neither knows Temporal.
"""
