"""What remakes everything under data/: configs, training, measuring, findings."""
