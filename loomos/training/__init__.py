"""Training with torch: loop, data, model, checkpoints, and how ranks are started."""
