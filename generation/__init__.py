"""Generators on AToken's tokens: flow transformers, masked autoregression, and pipelines of them."""

import logging

# diffusers warns whenever a model is given a dtype of modules that stay in fp32, also where there are none.
logging.getLogger("diffusers.models.modeling_utils").addFilter(lambda it: "kept in float32: []" not in it.getMessage())
