"""Sums of products of four signed bytes against numpy, in the instructions of each machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tvm
from foreign_checks import run_foreign
from tvm import tirx

from tinsmith.compiler.module.machine import cpu_features
from tinsmith.compiler.module.write.build import lower_kernels
from tinsmith.compiler.module.write.stages import split_kernel
from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.byte_dots import multiply_add, selected, use_byte_dots
from tinsmith.targets.registry import get_target
from tinsmith.targets.spec import TargetSpec

LANES, STEPS = 16, 9
INSTRUCTIONS = {
    "x86-64-v3": "vpmaddubsw",
    "x86-64-v4": "vpmaddubsw",
    "sapphirerapids": "vpdpbusd",
    "cortex-a72": "smull",
    "cortex-a76": "sdot",
}


def sums_of_products(lanes: int) -> tirx.PrimFunc:
    """out[lane] = sum over steps and i < 4 of codes[step, i] * weights[step, lane, i]"""
    codes = tirx.decl_buffer((STEPS * 4,), "int8", "codes")
    weights = tirx.decl_buffer((STEPS, lanes * 4), "int8", "weights")
    out = tirx.decl_buffer((lanes,), "int32", "out")
    everything = loops.ramp(0, lanes)

    def step(number):
        four = loops.load(codes, loops.ramp(number * 4, 4))
        row = loops.load(weights, number, loops.ramp(0, lanes * 4))
        return loops.store(out, (everything,), multiply_add(loops.load(out, everything), four, row))

    nothing = tirx.Broadcast(tirx.const(0, "int32"), lanes)
    body = loops.sequence(
        [loops.store(out, (everything,), nothing), loops.serial("step", STEPS, step)]
    )
    function = tirx.PrimFunc([codes, weights, out], body)
    return function.with_attr({"tirx.noalias": True, "global_symbol": "sums"})


def operands(lanes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random ones, and at first those that saturate 16 bits if anything does."""
    generator = np.random.default_rng(lanes)
    codes = generator.integers(-128, 128, (STEPS, 4)).astype(np.int8)
    weights = generator.integers(-127, 128, (STEPS, lanes, 4)).astype(np.int8)
    codes[:3], weights[:3] = -128, np.array([127, -127, 0])[:, None, None]
    wide = np.einsum("si,sli->l", codes.astype(np.int32), weights.astype(np.int32))
    return codes.reshape(-1), weights.reshape(STEPS, -1), wide


def run_on(spec: TargetSpec, emulator: list[str], folder: Path) -> None:
    cases, expected = {}, {}
    for lanes in (LANES, 4):
        codes, weights, expected[f"sums{lanes}"] = operands(lanes)
        function = use_byte_dots(sums_of_products(lanes), spec)
        cases[f"sums{lanes}"] = (function, [codes, weights])
    for name, found in run_foreign(cases, spec, emulator, folder).items():
        np.testing.assert_array_equal(found, expected[name])


@pytest.mark.parametrize(("target", "instruction"), INSTRUCTIONS.items())
def test_each_machine_uses_its_instructions(target: str, instruction: str) -> None:
    spec = get_target(target)
    kernel = lower_kernels({"sums": use_byte_dots(sums_of_products(LANES), spec)}, spec)["sums"]
    _, functions = split_kernel("sums", kernel, [True] * 3)
    with tvm.target.Target(spec.tvm_target_config()) as machine:
        module = tirx.transform.LowerIntrin()(tvm.IRModule(functions))
        library = tvm.get_global_func("target.build.llvm")(module, machine)
    assert instruction in library.inspect_source("s")


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "sapphirerapids"])
def test_x86(target: str, tmp_path: Path) -> None:
    spec = get_target(target)
    missing = spec.cpu_features - cpu_features()
    if missing:
        pytest.skip(f"this machine has no {', '.join(sorted(missing))}")
    run_on(spec, [], tmp_path)


@pytest.mark.skipif(shutil.which("qemu-aarch64-static") is None, reason="no emulator")
@pytest.mark.parametrize("target", ["cortex-a72", "cortex-a76"])
def test_arm(target: str, tmp_path: Path) -> None:
    run_on(get_target(target), ["qemu-aarch64-static", "-cpu", "max"], tmp_path)


def test_signs_go_over_to_the_weights_under_a_mask() -> None:
    """What AVX-512 does in the place of PSIGNB, on any machine."""
    codes, weights = tirx.decl_buffer((4,), "int8"), tirx.decl_buffer((64,), "int8")
    magnitudes, signed = tirx.decl_buffer((64,), "uint8"), tirx.decl_buffer((64,), "int8")
    all_bytes = loops.ramp(0, 64)
    word = tirx.reinterpret("int32", loops.load(codes, loops.ramp(0, 4)))
    pair = selected(word, loops.load(weights, all_bytes))
    stores = [
        loops.store(to, (all_bytes,), value)
        for to, value in zip((magnitudes, signed), pair, strict=True)
    ]
    function = tirx.PrimFunc([codes, weights, magnitudes, signed], loops.sequence(stores))
    executable = tvm.compile(
        tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), "llvm"
    )
    c = np.array([-128, -3, 0, 127], np.int8)
    w = np.random.default_rng(0).integers(-127, 128, 64).astype(np.int8)
    arguments = [tvm.runtime.tensor(a) for a in (c, w, np.zeros(64, "uint8"), np.zeros(64, "int8"))]
    executable["main"](*arguments)
    spread = np.tile(c.astype(np.int32), 16)
    np.testing.assert_array_equal(arguments[2].numpy(), np.abs(spread))
    np.testing.assert_array_equal(arguments[3].numpy(), np.where(spread < 0, -w, w))
