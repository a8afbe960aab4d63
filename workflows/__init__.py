"""Durable processes: they decide, activities do. They import temporalio and messages only."""
