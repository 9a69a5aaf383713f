"""Pictures with captions: web shards, folders, tables, and what of them cannot be used."""
