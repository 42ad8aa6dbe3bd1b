"""Pages of tables, charts and images that need nothing but themselves; this package knows nothing of what it shows."""
