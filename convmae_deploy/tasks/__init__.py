"""What a model does with media, without torch: preprocessing, and from the outputs of its graph to results."""
