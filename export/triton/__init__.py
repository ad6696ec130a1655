"""What a Triton repository says besides its configuration."""
