"""What training programs share around their loop: optimisation, order and randomness, the run folder, progress."""
