"""The experiments of the paper: their data, models, training and measures."""
