"""The gateway: HTTP in front of Temporal and the store. Thin: it validates, authorises, asks."""
