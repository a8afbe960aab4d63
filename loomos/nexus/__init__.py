"""The cluster: nodes, gang leases and who gets them next. Pure; the `Cluster` workflow drives it."""
