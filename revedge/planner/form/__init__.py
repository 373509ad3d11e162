"""The closed form of a training step's memory: formulas in T, B, C, H, W for every unit and strategy. Free of torch."""
