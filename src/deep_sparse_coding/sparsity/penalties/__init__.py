"""What makes activations sparse: forms of the penalty, weights, schedules, targets."""
