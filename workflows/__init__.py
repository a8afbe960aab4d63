"""Durable processes. Each decides; activities do. Standard library, temporalio and messages only."""
