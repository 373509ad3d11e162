"""Calls of the C library: tensors to pointers. Same signatures as the reference on plain floats.

Called by the dispatcher only, with contiguous CPU tensors; a module for each one of the reference's operators.
"""
