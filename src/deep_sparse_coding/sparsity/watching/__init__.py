"""Which activations of a network are meant, and how they are seen: names, hooks, calls of functions."""
