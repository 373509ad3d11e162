"""revedge."""
