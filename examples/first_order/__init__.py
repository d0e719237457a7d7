"""The comparisons of `bench_first_order.py`, one module each.

A comparison is a function `compare(setting: Setting) -> Comparison`; adding one is a module and a line in
`bench_first_order.COMPARISONS`.
"""
