"""Networks: a network is a frozen config and one file."""
