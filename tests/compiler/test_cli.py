"""Every command: what it prints, as text and as JSON, and one clear line for every mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

from tinsmith.compiler.cli import app, output
from tinsmith.compiler.module.version import tinsmith_version

COMMANDS = ("compile", "run", "bench", "verify", "inspect", "targets", "demo", "doctor")


def tinsmith(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeds(*arguments: object) -> dict[str, Any]:
    """The JSON that a successful command prints."""
    result = tinsmith(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def fails(arguments: Sequence[object], *mentions: str, code: int = 2) -> None:
    """The command prints exactly one line on standard error, which mentions these."""
    result = tinsmith(*arguments)
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("tinsmith: error: ")
    for mention in mentions:
        assert mention in lines[0]
    assert "Traceback" not in result.output
    as_json = tinsmith(*arguments, "--json")
    assert as_json.exit_code == code
    error = json.loads(as_json.stdout)["error"]
    assert error["exit_code"] == code
    assert error["message"] in as_json.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    text = tinsmith(command, "--help").output
    assert f"tinsmith {command}" in text.replace("\n", " ")
    assert "--json" in text


def test_help_lists_every_command() -> None:
    text = tinsmith("--help").output
    assert all(command in text for command in COMMANDS)


def test_the_most_used_options_come_first_and_the_rest_in_groups() -> None:
    text = tinsmith("compile", "--help").output
    text = text[text.index("─ Options ─") :]
    places = [text.index(part) for part in (
        "--output", "--quantize", "--prune ", "─ Samples", "─ Quantising", "--observer",
        "─ Pruning", "--prune-criterion", "─ Tuning records", "─ Diagnosis", "--dump",
    )]  # fmt: skip
    assert places == sorted(places)


def test_the_version_is_told() -> None:
    result = tinsmith("--version")
    assert result.exit_code == 0
    assert result.output == f"tinsmith {tinsmith_version()}\n"


def test_shells_complete_commands_and_options() -> None:
    for typed, expected in (("tinsmith comp", "compile"), ("tinsmith run --thr", "--threads")):
        asked = {"_TINSMITH_COMPLETE": "complete_bash", "COMP_WORDS": typed}
        asked["COMP_CWORD"] = str(len(typed.split()) - 1)
        result = CliRunner().invoke(app, [], prog_name="tinsmith", env=asked)
        assert result.output.split() == [expected]
    assert "--install-completion" in tinsmith("--help").output


# doctor ----------------------------------------------------------------------


def test_doctor_tells_what_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = succeeds("doctor")
    assert found["works"] and found["tvm"].startswith("0.27")
    versions = {package["name"]: package["version"] for package in found["packages"]}
    assert versions["numpy"] == np.__version__ and "pytest" not in versions
    assert found["usable"] >= 1 and found["vector_bits"] in (0, 128, 256, 512)
    assert {place["path"] for place in found["places"]} >= {str(tmp_path / "tinsmith")}
    assert all(place["writable"] for place in found["places"])


# compile ---------------------------------------------------------------------


def test_compile_reports_and_writes(small_model_file: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    report = succeeds("compile", small_model_file, "-o", tmp_path / "m", "--dump", dump)
    assert report["form"] == "self-contained"
    assert report["differences"][0]["agrees"]
    assert set(report["seconds"]) == {"import", "lower", "reference", "build", "prove"}
    assert report["peak_memory_bytes"] > 2**20
    assert report["measured"]["latency"]["median_ms"] > 0
    assert len(list(dump.iterdir())) == len(report["passes"]) > 5
    assert (tmp_path / "m" / "model.so").is_file()
    assert (tmp_path / "m" / "tinsmith-run").is_file()


def test_compile_prints_timing_and_notes(small_model_file: Path, tmp_path: Path) -> None:
    result = tinsmith("compile", small_model_file, "-o", tmp_path / "m", "--timing")
    assert result.exit_code == 0
    assert "agrees with" in result.stdout
    assert "convert_layout" in result.stdout
    assert "batch" in result.stderr


def save(path: Path, *nodes: onnx.NodeProto, opset: int = 17) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my.domain", 1)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()
    )
    return path


def test_bad_models_get_one_line_and_leave_nothing(small_model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = tmp_path / "text.onnx"
    text.write_text("this is no model")
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(small_model_file.read_bytes()[:2000])
    relu = helper.make_node("Relu", ["x"], ["y"])
    unknown = save(
        tmp_path / "unknown.onnx", helper.make_node("Frob", ["x"], ["y"], "f1", domain="my.domain")
    )
    future = save(tmp_path / "future.onnx", relu, opset=999)
    unbound = save(tmp_path / "unbound.onnx", relu)
    cases: list[tuple[list[object], tuple[str, ...]]] = [
        ([tmp_path / "absent.onnx"], ("absent.onnx",)),
        ([tmp_path], (str(tmp_path),)),
        ([text], ("text.onnx",)),
        ([truncated], ("truncated.onnx",)),
        ([unknown, "--shape", "x=1,4"], ("unknown.onnx", "Frob", "f1")),
        ([future], ("future.onnx", "999")),
        ([unbound], ("unbound.onnx", "x")),
        ([unbound, "--shape", "y=1,2"], ("y",)),
        ([unbound, "--shape", "x=1,2,3"], ("x",)),
        ([unbound, "--shape", "x=1,none"], ("--shape x=1,none",)),
        ([unbound, "--constant", "x=hello"], ("--constant x=hello",)),
        ([small_model_file, "--target", "pdp11"], ("pdp11",)),
    ]
    for arguments, mentions in cases:
        fails(["compile", *arguments, "-o", out], *mentions)
        assert not out.exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"text.onnx", "truncated.onnx", "unknown.onnx", "future.onnx", "unbound.onnx"}


def test_external_data_must_stay_in_the_folder(small_model_file: Path, tmp_path: Path) -> None:
    model = onnx.load(small_model_file)
    tensor = model.graph.initializer[0]
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    (tmp_path / "inside").mkdir()
    (tmp_path / "weights").write_bytes(bytes(size))
    for location in ("../weights", str(tmp_path / "weights"), "absent"):
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=location)
        path = tmp_path / "inside" / "model.onnx"
        path.write_bytes(model.SerializeToString())
        fails(["compile", path, "-o", tmp_path / "out"], "model.onnx")
        assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written(small_model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fails(["compile", small_model_file, "-o", tmp_path / "file"], str(tmp_path / "file"))
    fails(["compile", small_model_file, "-o", tmp_path / "file" / "m"], "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep")
    fails(["compile", small_model_file, "-o", tmp_path / "mine"], "mine")
    assert (tmp_path / "mine" / "precious.txt").read_text() == "keep"


# run -------------------------------------------------------------------------


def test_run_writes_what_the_module_computes(small_module: Path, tmp_path: Path) -> None:
    from tinsmith.compiler.module.loader import load

    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    np.savez(tmp_path / "all.npz", image=image)
    expected = load(small_module)(image)["scores"]
    for option in (f"image={tmp_path / 'image.npy'}", tmp_path / "image.npy", tmp_path / "all.npz"):
        report = succeeds("run", small_module, "-i", option, "-o", tmp_path / "o.npz")
        assert report["outputs"]["scores"]["shape"] == [1, 5]
        with np.load(tmp_path / "o.npz") as written:
            np.testing.assert_array_equal(written["scores"], expected)
    text = tinsmith("run", small_module, "-i", tmp_path / "image.npy").stdout
    assert "scores" in text
    assert "ran in" in text


def test_run_refuses_wrong_data(small_module: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.zeros((1, 3, 8), np.float32))
    np.save(tmp_path / "double.npy", np.zeros((1, 3, 8, 8)))
    (tmp_path / "text.npy").write_text("hello")
    run: list[object] = ["run", small_module]
    fails(run, "image")
    fails([*run, "-i", tmp_path / "absent.npy"], "absent.npy")
    fails([*run, "-i", tmp_path / "text.npy"], "text.npy")
    fails([*run, "-i", f"picture={tmp_path / 'short.npy'}"], "picture", "image")
    fails([*run, "-i", tmp_path / "short.npy"], "image", "shape")
    fails([*run, "-i", tmp_path / "double.npy"], "image", "float64")
    fails([*run, "-i", tmp_path / "short.npy", "-o", "out.txt"], "out.txt", ".npz")


# modules that are none ---------------------------------------------------------


def test_damaged_and_foreign_modules(small_module: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(small_module, damaged)
    library = bytearray((damaged / "model.so").read_bytes())
    library[len(library) // 2] ^= 1
    (damaged / "model.so").write_bytes(library)
    foreign = tmp_path / "foreign"
    shutil.copytree(small_module, foreign)
    manifest = json.loads((foreign / "manifest.json").read_text())
    manifest["target"]["architecture"] = "vax"
    (foreign / "manifest.json").write_text(json.dumps(manifest))
    empty = tmp_path / "empty"
    empty.mkdir()
    for command in ("run", "verify", "inspect", "bench"):
        fails([command, damaged], "damaged", "digest")
        if command != "inspect":
            fails([command, foreign], "vax")
        fails([command, empty], "empty")
        fails([command, tmp_path / "absent"], "absent")


# verify, inspect, bench ----------------------------------------------------------


def test_verify_agrees(small_module: Path, small_model_file: Path) -> None:
    report = succeeds("verify", small_module, "--model", small_model_file, "--samples", 2)
    assert report["agrees"]
    assert [check["inputs"] for check in report["checks"]] == [
        "golden vectors",
        "random, seed 1",
        "random, seed 2",
    ]
    text = tinsmith("verify", small_module)
    assert text.exit_code == 0
    assert "give the model with --model" in text.stderr


def test_verify_with_another_model_of_the_same_signature_fails(
    small_module: Path, small_model_file: Path, tmp_path: Path
) -> None:
    model = onnx.load(small_model_file)
    weights = onnx.numpy_helper.to_array(model.graph.initializer[4])
    model.graph.initializer[4].CopyFrom(onnx.numpy_helper.from_array(weights * 1.01, "w3"))
    onnx.save(model, tmp_path / "other.onnx")
    result = tinsmith("verify", small_module, "--model", tmp_path / "other.onnx", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["agrees"] is False, "one document, which tells of it"
    assert "does not agree" in result.stderr


def test_verify_refuses_a_model_with_another_signature(small_module: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other.onnx", helper.make_node("Relu", ["x"], ["y"]))
    fails(["verify", small_module, "--model", other], "other.onnx", "is not the model")
    fails(["verify", small_module, "--bisect"], "--model")


def test_inspect_accounts_for_the_time(
    small_module: Path, small_model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinsmith.compiler.evaluate import roofline

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(roofline, "WINDOWS", 2)
    report = succeeds("inspect", small_module)
    kernels = report["kernels"]
    assert sum(kernel["share_of_time"] for kernel in kernels) == pytest.approx(1.0)
    assert sum(kernel["seconds"] for kernel in kernels) == pytest.approx(report["seconds"])
    # 16 channels of 3 x 3 x 3 products and sums on 8 x 8 points, and so on through the network.
    named = {name for kernel in kernels for name in kernel["nodes"]}
    model = onnx.load(small_model_file)
    known = {node.name or node.output[0] for node in model.graph.node}
    assert named and named <= known
    convolutions = sum(k["flops"] for k in kernels if k["template"] == "convolution")
    exact = 2 * 16 * 27 * 64 + 2 * 16 * 144 * 9
    assert exact <= convolutions <= 1.1 * exact
    assert (tmp_path / "tinsmith" / "roofline.json").is_file()
    text = tinsmith("inspect", small_module).stdout
    assert "convolution" in text
    assert "of the roofline" in text


def test_inspect_tells_of_modules_for_other_machines_what_needs_no_run(
    small_module: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(small_module, foreign)
    manifest = json.loads((foreign / "manifest.json").read_text())
    manifest["target"]["cpu_features"].append("flux_capacitor")
    (foreign / "manifest.json").write_text(json.dumps(manifest))
    report = succeeds("inspect", foreign)
    assert "this CPU lacks flux_capacitor" in report["not_run"]
    assert report["roofline"] is None and report["seconds"] is None
    flops = [kernel["flops"] for kernel in report["kernels"]]
    assert flops == sorted(flops, reverse=True) and flops[0] > 0
    text = tinsmith("inspect", foreign).stdout
    for part in ("convolution", "decisions", "flux_capacitor", "inputs: image", "not run:"):
        assert part in text
    assert "roof" not in text


def test_bench_races_and_names_who_is_missing(
    small_module: Path, small_model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinsmith.compiler.evaluate import bench

    monkeypatch.setattr(bench, "installed", lambda peer: peer.package == "onnxruntime")
    report = succeeds("bench", small_module, "--model", small_model_file, "--runs", 7)
    assert [timing["label"] for timing in report["timings"]] == ["Tinsmith", "ONNX Runtime"]
    for timing in report["timings"]:
        assert timing["runs"] == 7
        assert 0 < timing["best_ms"] <= timing["median_ms"] <= timing["p95_ms"]
    assert report["timings"][0]["ratio_to_module"] == 1.0
    assert "tinsmith[bench]" in report["missing"]["OpenVINO"]
    text = tinsmith("bench", small_module, "--runs", 2).stdout
    assert "missing: ONNX Runtime: needs the ONNX model" in text


def test_bench_names_who_lacks_the_precision(
    small_module: Path, small_model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinsmith.compiler.evaluate import bench

    monkeypatch.setattr(bench, "installed", lambda peer: peer.package == "onnxruntime")
    given = ("bench", small_module, "--model", small_model_file, "--runs", 1)
    report = succeeds(*given, "--precision", "bfloat16")
    assert report["missing"]["ONNX Runtime"] == "does not compute in bfloat16"
    refused = tinsmith(*given, "--precision", "half")
    assert refused.exit_code == 2
    assert "--precision half: choose from bfloat16, float32" in refused.stderr


# targets, errors ---------------------------------------------------------------


def test_targets_lists_native_and_the_levels() -> None:
    result = tinsmith("targets", "--json")
    names = [target["name"] for target in json.loads(result.stdout)]
    assert {"x86-64-v3", "x86-64-v4", "cortex-a72", "cortex-a7"} <= set(names)
    assert "cortex-a7" in tinsmith("targets").stdout


def test_a_bug_gets_one_line_and_the_way_to_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tinsmith.targets import registry

    def broken() -> tuple[str, ...]:
        raise RuntimeError("flux capacitor\nsecond line")

    monkeypatch.setattr(registry, "target_names", broken)
    fails(["targets"], "RuntimeError: flux capacitor", "--debug", code=70)
    monkeypatch.setenv(output.DEBUG_VARIABLE, "1")
    assert "Traceback" in tinsmith("targets").stderr


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinsmith.targets import registry

    def full() -> tuple[str, ...]:
        raise OSError(28, "No space left on device", "out/model.so")

    monkeypatch.setattr(registry, "target_names", full)
    fails(["targets"], "out/model.so: No space left on device")


@pytest.mark.parametrize("arguments", [["--debug", "targets"], ["targets", "--debug"]])
def test_debug_may_stand_anywhere(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tinsmith.compiler.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_enough_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m tinsmith.compiler.cli targets --json | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
