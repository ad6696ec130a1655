"""The threads, batches, memory and processes in which requests are worked on."""
