"""Data larger than memory or disk: shards, and where they are."""
