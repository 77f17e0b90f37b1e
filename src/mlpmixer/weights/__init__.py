"""Files of weights, ours and those of other code, and run folders."""
