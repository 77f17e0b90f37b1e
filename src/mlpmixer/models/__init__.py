"""Networks: each is a frozen config and one file."""
