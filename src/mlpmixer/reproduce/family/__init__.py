"""Nine all-MLP networks of one size, trained alike on CIFAR-10 and compared."""
