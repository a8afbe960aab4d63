"""The processes: `python -m workers.control`, `python -m workers.gpu`."""
