"""Data larger than memory and disk: shards, and where they are."""
