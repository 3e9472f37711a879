"""Files that other tools write: what they are, and how a model in one becomes an ONNX file.

Nothing here imports TVM or onnx, so that it can be told at once.
"""

from __future__ import annotations

from pathlib import Path

_TORCH = (
    "a file of PyTorch; load the model there and write it as ONNX: "
    "torch.onnx.export(model.eval(), (example_input,), 'model.onnx', dynamo=True)"
)
_KERAS = (
    "a file of Keras; in Python: keras.models.load_model('{name}').export('model.onnx', "
    "format='onnx')"
)
_WEIGHTS = (
    "weights without a graph; build the model that they belong to, load them, and write it as "
    "ONNX, for PyTorch with torch.onnx.export, for Hugging Face models with: "
    "optimum-cli export onnx --model FOLDER out/"
)
# By the ending of the name, in small letters.
_KINDS: dict[str, str] = {
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".ckpt": _TORCH,
    ".pt2": (
        "an exported program of PyTorch; write it as ONNX: "
        "torch.onnx.export(torch.export.load('{name}'), dynamo=True).save('model.onnx')"
    ),
    ".ptl": _TORCH,
    ".torchscript": _TORCH,
    ".tflite": (
        "a model of TensorFlow Lite; convert it: python -m tf2onnx.convert --tflite {name} "
        "--output model.onnx"
    ),
    ".pb": (
        "a graph of TensorFlow; convert it: python -m tf2onnx.convert --graphdef {name} "
        "--inputs IN:0 --outputs OUT:0 --output model.onnx (a SavedModel: --saved-model FOLDER)"
    ),
    ".h5": _KERAS,
    ".hdf5": _KERAS,
    ".keras": _KERAS,
    ".safetensors": _WEIGHTS,
    ".gguf": (
        "a language model of llama.cpp, which runs it; the model it was made from becomes ONNX "
        "with: optimum-cli export onnx --model NAME out/"
    ),
    ".ggml": "a language model of llama.cpp, which runs it",
    ".caffemodel": (
        "a model of Caffe; convert it with its .prototxt: python -m caffe2onnx.convert "
        "--prototxt model.prototxt --caffemodel {name} --onnx model.onnx"
    ),
    ".mlmodel": (
        "a model of Core ML; convert it with onnxmltools: "
        "onnxmltools.convert_coreml(coremltools.utils.load_spec('{name}'))"
    ),
    ".mlpackage": "a program of Core ML, which has no way back to ONNX; export the original model",
    ".pdmodel": (
        "a model of PaddlePaddle; convert it: paddle2onnx --model_dir FOLDER --model_filename "
        "{name} --params_filename model.pdiparams --save_file model.onnx"
    ),
    ".params": "weights of MXNet; export them with their graph: mxnet.onnx.export_model",
    ".pkl": "a Python object; scikit-learn models become ONNX with skl2onnx.to_onnx(model, X)",
    ".joblib": "a Python object; scikit-learn models become ONNX with skl2onnx.to_onnx(model, X)",
    ".ubj": "a model of XGBoost; convert it with onnxmltools.convert_xgboost",
    ".xml": (
        "an intermediate file of OpenVINO, which has no way back to ONNX; compile the model that "
        "it was made from"
    ),
    ".engine": "an engine of TensorRT for one GPU; compile the ONNX file that it was made from",
    ".ort": (
        "a model in ONNX Runtime's own format; compile the .onnx file that it was made from"
    ),
    ".npz": "arrays without a graph; it may be meant for --calibration",
}  # fmt: skip


# By the first bytes, whatever the name is; `TFL3` stands behind an offset of four bytes.
_BEGINNINGS = ((0, b"GGUF", ".gguf"), (0, b"\x89HDF\r\n", ".h5"), (4, b"TFL3", ".tflite"))
# The number of the first field of an ONNX file, its format's version.
_ONNX_BEGINS = b"\x08"


def told_of_foreign(path: Path) -> str | None:
    """What a file with such a name is and how it becomes ONNX, in one line; None for others."""
    return _told(path.suffix.lower(), path)


def told_by_content(path: Path) -> str | None:
    """As `told_of_foreign`, of a file or folder that is there and surely no ONNX file.

    Raises OSError where it cannot be read.
    """
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return (
                "a SavedModel of TensorFlow; convert it: python -m tf2onnx.convert "
                f"--saved-model {path.name} --output model.onnx"
            )
        return told_of_foreign(path)
    with path.open("rb") as stream:
        begin = stream.read(16)
    for offset, magic, suffix in _BEGINNINGS:
        if begin[offset:].startswith(magic):
            return _told(suffix, path)
    return None if begin.startswith(_ONNX_BEGINS) else told_of_foreign(path)


def _told(suffix: str, path: Path) -> str | None:
    kind = _KINDS.get(suffix)
    return None if kind is None else kind.replace("{name}", path.name)
