"""Files of weights, ours and others', and run folders."""
