"""The cluster: nodes, gang leases, who is next. Pure; the `Cluster` workflow drives it."""
