"""Everything that knows the insides of DeepSpeed or torch: the engine, its optimizers, gradients
and files.
"""
