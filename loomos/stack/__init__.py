"""The embedded stack: everything LoomOS needs, on one machine, under one supervisor."""
