"""The Triton kernels of packed weights compiled ahead of time: what they need on GPUs that are not here."""

from __future__ import annotations

from typing import Any

from lowmem.kernels import packed as native
from lowmem.quant.codec import Kind


def compile_ahead(capability: int, kinds: tuple[Kind, ...]) -> list[dict[str, object]]:
    """Registers, shared memory and spilled bytes of every Triton kernel for every kind."""
    import triton
    import triton.language as tl
    from bench_perturb import _usage
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lowmem.kernels.triton_packed import gemm_kernel, gemv_kernel, rotate_stage_kernel, unpack_kernel
    from lowmem.quant.triton_product import COLUMNS, GEMV_LAUNCH, LAUNCH, ROWS, TOKENS

    bytes_ = {
        "plane0": "*u8",
        "plane1": "*u8",
        "scales": "*fp16",
        "levels": "*i8",
        "patterns": "*u8",
        "residual": "*u8",
    }
    numbers = {"m": "i32", "n": "i32", "group": "i32", "gain": "fp32", "residual_scale": "fp32"}
    cases: list[tuple[str, Any, dict[str, str], dict[str, Any]]] = []
    for kind in kinds:
        own = {"KIND": native.KINDS.index(kind), "ROWS": ROWS}
        io = {"x": "*fp32", "out": "*fp32"}
        cases.append((f"gemv_{kind}", gemv_kernel, io | bytes_ | numbers, own))
        tiles = own | {"TOKENS": TOKENS, "COMPUTE": tl.bfloat16}
        cases.append((f"gemm_{kind}", gemm_kernel, io | bytes_ | {"tokens": "i32"} | numbers, tiles))
        cases.append((f"unpack_{kind}", unpack_kernel, {"out": "*bf16"} | bytes_ | numbers, own))
    vectors = dict.fromkeys(("x", "out", "before", "after", "matrices"), "*fp32")
    for shared in (True, False):
        flags = {"SHARED": shared, "BEFORE": True, "AFTER": False, "COLUMNS": COLUMNS}
        sizes = {"n": "i32", "radix": "i32", "stride": "i32"}
        cases.append((f"rotate_{'shared' if shared else 'learned'}", rotate_stage_kernel, vectors | sizes, flags))
    reports: list[dict[str, object]] = []
    for title, kernel, signature, constants in cases:
        source = ASTSource(
            fn=kernel,
            signature={name: signature.get(name, "constexpr") for name in kernel.arg_names},
            constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        )
        built = triton.compile(
            source,
            target=GPUTarget("cuda", capability, 32),
            options=dict(GEMV_LAUNCH if kernel is gemv_kernel else LAUNCH),
        )
        needs = {"shared": built.metadata.shared, **_usage(built.asm["cubin"])}
        reports.append({"kernel": title, "sm": capability, **needs})
    return reports
