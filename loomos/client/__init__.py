"""Clients: `LoomOSClient` over HTTP (the SDK), `WorkflowClient` straight to Temporal."""
