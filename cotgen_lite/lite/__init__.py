"""The lite world, and the pre-training of the models that live in it."""
