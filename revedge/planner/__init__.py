"""What a training will take in memory, and the training to choose for a number of bytes. Free of torch."""
