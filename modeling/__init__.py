"""The networks, their losses, and how they generate."""

import importlib

# First of all: importing this registers our models (see the root package), which must not begin halfway through one
# of our own modules.
importlib.import_module("transformers.models.auto.modeling_auto")
