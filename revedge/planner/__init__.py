"""What a training takes in memory, and which training to choose for a number of bytes."""
