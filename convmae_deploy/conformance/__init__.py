"""Whether another program does with a photo what this one does: photos with their answers, and what judges others'."""
