"""The cluster as programs steer it."""
