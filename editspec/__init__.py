"""The edit spec language: schema, loader with exact diagnostics, canonical form and digest."""
