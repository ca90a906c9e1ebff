"""What sparsity buys at inference: multiply-adds that zeros spare, and layers that skip zeros."""
