"""Counter-based noise and the fused passes over weights that use it.

One definition (`reference`), several implementations with identical bits; the rest of the package calls
`dispatch`.
"""
