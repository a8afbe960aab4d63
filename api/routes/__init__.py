"""Routes, one file per kind of thing."""
