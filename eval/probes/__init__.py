"""Whether tokens and vectors serve tasks that nobody trained them for: each probe says its recipe in its docstring."""
