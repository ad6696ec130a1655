"""Whether a graph gives PyTorch's numbers, and where it leaves them."""
