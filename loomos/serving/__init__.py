"""Models in service: an engine that batches, routes that are picked in process, OpenAI's protocol.

`routes` is pure and `table`, `outcomes` need only the store; torch is in `engine`, `adapters` and
`hosting`.
"""
