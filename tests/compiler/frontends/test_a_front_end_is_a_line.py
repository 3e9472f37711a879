"""A front end takes one file (here, this one) and one line of the registry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tvm import relax

from tinsmith.compiler.api import compile_to
from tinsmith.compiler.cli.early import check_model
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.dimensions.ranges import Size
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.evaluate.bench import bench
from tinsmith.compiler.evaluate.bisect import bisect_module
from tinsmith.compiler.evaluate.inputs import Domain
from tinsmith.compiler.evaluate.reference import Arrays, Reference
from tinsmith.compiler.evaluate.verify import verify
from tinsmith.compiler.frontends import registry
from tinsmith.compiler.frontends.frontend import (
    Constants,
    Frontend,
    Interface,
    ModelSource,
    Shapes,
    path_of,
)
from tinsmith.compiler.frontends.imported import ImportedModel, described_outputs
from tinsmith.compiler.frontends.registry import frontend_of, import_model
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.tuning.identity import job_digest


@dataclass(frozen=True)
class NumpyReference(Reference):
    """relu(x @ weights)"""

    weights: np.ndarray

    @property
    def label(self) -> str:
        return f"numpy {np.__version__}"

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return {"y": np.maximum(inputs["x"] @ self.weights, 0)}

    def tensors(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return {"product": inputs["x"] @ self.weights, **self.run(inputs)}


class LayerFrontend(Frontend):
    """Files named `*.layer`: the weights of one layer in JSON."""

    name = "layer"

    def accepts(self, source: ModelSource) -> bool:
        path = path_of(source)
        return path is not None and path.suffix == ".layer"

    def read(
        self,
        source: ModelSource,
        shapes: Shapes,
        constants: Constants,
        batch: Size | None = None,
    ) -> ImportedModel:
        try:
            weights = np.array(json.loads(Path(str(source)).read_text()), "float32")
        except ValueError as error:
            raise ModelError(f"{source}: not a layer") from error
        shape = tuple(shapes.get("x", (1, len(weights))))
        bb = relax.BlockBuilder()
        x = relax.Var("x", relax.TensorType(shape, "float32"))
        with bb.function("main", [x]):
            with bb.dataflow():
                product = bb.emit(relax.op.matmul(x, relax.const(weights)), name_hint="product")
                result = bb.emit_output(relax.op.nn.relu(product), name_hint="result")
            bb.emit_func_output(result)
        module = bb.get()
        ((output, dtype),) = described_outputs(module, str(source))
        return ImportedModel(
            module=module,
            source=str(source),
            input_names=("x",),
            input_shapes=(shape,),
            input_dtypes=("float32",),
            output_names=("y",),
            output_shapes=(output,),
            output_dtypes=(dtype,),
            domains={"x": Domain(-2, 2)},
            notes=("read by a front end of one file",),
            reference=lambda threads=1, size=None: NumpyReference(weights),
            node_names={"product": "layer/product", "result": "layer/result"},
        )


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FRONTENDS", (LayerFrontend(), *registry.FRONTENDS))


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    return _layer(tmp_path / "net.layer", 0)


def _layer(path: Path, seed: int) -> Path:
    weights = np.random.default_rng(seed).standard_normal((8, 16)).round(3)
    path.write_text(json.dumps(weights.tolist()))
    return path


@pytest.mark.usefixtures("line")
def test_its_models_are_compiled_and_judged_like_all_others(layer: Path, tmp_path: Path) -> None:
    check_model(layer)
    out = tmp_path / "out"
    report = compile_to(layer, out, shapes={"x": (3, 8)})
    assert report.reference.startswith("numpy")
    assert report.differences and all(d.agrees for d in report.differences)
    assert "read by a front end of one file" in report.notes
    assert report.manifest.name == "net"
    assert [n for kernel in report.manifest.kernels for n in kernel.nodes][-1] == "layer/result"
    with load(out) as module:
        assert module.golden() is not None
        assert module(np.ones((3, 8), np.float32))["y"].shape == (3, 16)

    checks = verify(out, layer, samples=2).checks
    assert [check.reference.split()[0] for check in checks] == ["stored", "numpy", "numpy"]
    assert all(difference.agrees for check in checks for difference in check.differences)
    assert not verify(out, _layer(tmp_path / "other.layer", 1)).agrees

    assert bisect_module(out, layer).conclusion().startswith("no pass diverges from numpy")
    wrong = bisect_module(out, tmp_path / "other.layer").first_divergence
    assert wrong is not None and wrong.name == "code generation"

    missing = bench(out, layer, runs=1, threads=1).missing
    assert set(missing.values()) == {"needs the ONNX model: --model MODEL.onnx"}


@pytest.mark.usefixtures("line")
def test_its_models_are_told_apart_by_their_content(layer: Path, tmp_path: Path) -> None:
    config = CompileConfig()
    same, other = _layer(tmp_path / "same.layer", 0), _layer(tmp_path / "other.layer", 1)
    assert job_digest(layer, config, 1) == job_digest(same, config, 1)
    assert job_digest(layer, config, 1) != job_digest(other, config, 1)
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        job_digest(tmp_path / "none.layer", config, 1)


@pytest.mark.usefixtures("line")
def test_another_model_is_refused(layer: Path) -> None:
    interface = Interface("module", {"image": (1, 8)}, ("y",), {})
    with pytest.raises(ModelError, match=r"is not the model that module was .*inputs x; outputs y"):
        frontend_of(layer).original(layer, interface)


def test_without_the_line_nobody_takes_it(layer: Path) -> None:
    assert frontend_of(layer).name == "ONNX"
    with pytest.raises(ModelError, match="not an ONNX file"):
        import_model(layer)


def test_a_model_in_memory_that_nobody_knows() -> None:
    with pytest.raises(ModelError, match=r"dict: not a model of any known kind \(checkpoint, ONNX"):
        import_model({"weights": np.zeros(3)})
