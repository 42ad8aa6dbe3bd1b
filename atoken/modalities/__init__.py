"""The two ends that know what a token was made from; one module a kind of input."""
