"""How sparse activations are: measures, reports, probes, surveys of a data loader."""
