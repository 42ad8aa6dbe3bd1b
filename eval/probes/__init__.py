"""Whether tokens and vectors serve tasks that they were not trained for; each probe has its recipe in its docstring."""
