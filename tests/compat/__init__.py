"""Our runs beside upstream's own, of the same files."""
