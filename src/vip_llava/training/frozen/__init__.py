"""Frozen Llama layers that a gradient goes back through, as when the projector alone learns.

No weight of them learns, so nothing is kept for that; what lies between the products is a few
kernels that touch each number as seldom as possible, forward and backward (`plain` says what they
compute, `gpu` has them in Triton). `layer` puts a layer together, `decoder` a language model, and
`eight` has products of 8 bits for who wants them. Whatever is not such a layer goes the usual way.
"""
