"""The messages and states that clients, workflows and activities share. Pure; no I/O."""
