"""Side effects, one file per kind. Every activity is idempotent; long ones heartbeat."""
