"""Train the demo network: a residual network of about 300,000 parameters on Fashion-MNIST.

    pip install torch==2.13.0 onnx numpy
    apt-get install dataset-fashion-mnist
    python examples/train_fashion_mnist.py --output compiler/demo

writes `fashion_resnet.onnx` (float32, symbolic batch, batch normalisation and
input normalisation left as nodes, for the compiler to fold) and
`fashion_test.npz` (1,000 labelled test images). About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530
STAGES = ((32, 2, 1), (64, 2, 2), (96, 1, 2))  # channels, blocks, stride of the first block


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of uint8 (the format of MNIST and its successors)."""
    with gzip.open(path, "rb") as stream:
        data = stream.read()
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, or beside a 1x1 convolution if shapes change."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or inputs != channels:
            self.shortcut = nn.Conv2d(inputs, channels, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        skip = x if self.shortcut is None else self.shortcut_norm(self.shortcut(x))
        return functional.relu(y + skip)


class FashionResNet(nn.Module):
    """(N, 1, 28, 28) pixels in 0..1 -> (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, STAGES[0][0], 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(STAGES[0][0])
        blocks, inputs = [], STAGES[0][0]
        for channels, count, stride in STAGES:
            for index in range(count):
                blocks.append(ResidualBlock(inputs, channels, stride if index == 0 else 1))
                inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        y = (x - PIXEL_MEAN) / PIXEL_STD
        y = functional.relu(self.stem_norm(self.stem(y)))
        y = self.blocks(y)
        return self.classifier(y.mean((2, 3)))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random shifts by up to 2 pixels and horizontal flips of a batch (N, 1, 28, 28)."""
    padded = functional.pad(images, (2, 2, 2, 2))
    dy, dx = torch.randint(0, 5, (2,), generator=generator).tolist()
    shifted = padded[:, :, dy : dy + 28, dx : dx + 28]
    flip = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], shifted.flip(3), shifted)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in evaluation mode."""
    model.eval()
    with torch.no_grad():
        hits = sum(
            int((model(images[i : i + 500]).argmax(1) == labels[i : i + 500]).sum())
            for i in range(0, len(images), 500)
        )
    return hits / len(images)


def train(data: dict[str, Tensor], epochs: int, batch: int) -> FashionResNet:
    """SGD with Nesterov momentum, one cycle of the learning rate, label smoothing."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = FashionResNet().to(memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    steps = len(data["train_images"]) // batch
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.4, total_steps=epochs * steps, pct_start=0.25
    )
    for epoch in range(epochs):
        model.train()
        begin = time.time()
        order = torch.randperm(len(data["train_images"]), generator=generator)
        total = 0.0
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            images = augment(data["train_images"][chosen], generator)
            images = images.contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(
                model(images), data["train_labels"][chosen], label_smoothing=0.05
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        score = accuracy(model, data["test_images"], data["test_labels"])
        print(
            f"epoch {epoch + 1}/{epochs} loss {total / steps:.4f} "
            f"test accuracy {score:.4f} {time.time() - begin:.0f} s",
            flush=True,
        )
    return model


class OnnxWriter:
    """Writes the network node by node, so that nothing is folded before the compiler sees it."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, name: str, value: Tensor | np.ndarray) -> str:
        array = value.detach().numpy() if isinstance(value, Tensor) else value
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(
            helper.make_node(operator, inputs, [output], name=f"{output}/{operator}", **attributes)
        )
        return output

    def conv_norm(self, x: str, conv: nn.Conv2d, norm: nn.BatchNorm2d, name: str) -> str:
        padding = conv.padding[0]
        y = self.node(
            "Conv",
            [x, self.constant(f"{name}.weight", conv.weight)],
            f"{name}.conv",
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=[padding] * 4,
        )
        statistics = {
            "scale": norm.weight,
            "bias": norm.bias,
            "mean": norm.running_mean,
            "variance": norm.running_var,
        }
        names = [self.constant(f"{name}.{key}", value) for key, value in statistics.items()]
        return self.node("BatchNormalization", [y, *names], f"{name}.norm", epsilon=norm.eps)


def write_onnx(model: FashionResNet, path: Path, test_accuracy: float) -> None:
    """Write `model` in evaluation mode as ONNX (opset 17, input `image`, output `logits`)."""
    model = model.to(memory_format=torch.contiguous_format).eval()
    w = OnnxWriter()
    x = w.node("Sub", ["image", w.constant("pixel_mean", np.float32(PIXEL_MEAN))], "centred")
    x = w.node("Div", [x, w.constant("pixel_std", np.float32(PIXEL_STD))], "normalised")
    x = w.node("Relu", [w.conv_norm(x, model.stem, model.stem_norm, "stem")], "stem.relu")
    for index, block in enumerate(model.blocks):
        assert isinstance(block, ResidualBlock)
        name = f"block{index}"
        y = w.conv_norm(x, block.conv1, block.norm1, f"{name}.1")
        y = w.node("Relu", [y], f"{name}.1.relu")
        y = w.conv_norm(y, block.conv2, block.norm2, f"{name}.2")
        if block.shortcut is not None:
            x = w.conv_norm(x, block.shortcut, block.shortcut_norm, f"{name}.shortcut")
        x = w.node("Relu", [w.node("Add", [y, x], f"{name}.sum")], f"{name}.relu")
    x = w.node("GlobalAveragePool", [x], "pooled")
    x = w.node("Flatten", [x], "features", axis=1)
    weight = w.constant("classifier.weight", model.classifier.weight)
    bias = w.constant("classifier.bias", model.classifier.bias)
    w.node("Gemm", [x, weight, bias], "logits", transB=1)
    graph = helper.make_graph(
        w.nodes,
        "fashion_resnet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        w.constants,
    )
    proto = helper.make_model(
        graph,
        producer_name="tinsmith examples/train_fashion_mnist.py",
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    helper.set_model_props(
        proto,
        {"classes": ",".join(CLASSES), "test_accuracy_10000": f"{test_accuracy:.4f}"},
    )
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def main() -> None:
    """Train, report the accuracy on the 10,000 test images, write the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--output", type=Path, default=Path("compiler/demo"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    arrays = {
        name: read_idx(options.data / file)
        for name, file in {
            "train_images": "train-images-idx3-ubyte.gz",
            "train_labels": "train-labels-idx1-ubyte.gz",
            "test_images": "t10k-images-idx3-ubyte.gz",
            "test_labels": "t10k-labels-idx1-ubyte.gz",
        }.items()
    }
    data = {
        name: torch.from_numpy(
            value[:, None].astype(np.float32) / 255 if value.ndim == 3 else value.astype(np.int64)
        )
        for name, value in arrays.items()
    }
    options.output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        options.output / "fashion_test.npz",
        images=arrays["test_images"][:1000],
        labels=arrays["test_labels"][:1000],
        classes=np.array(CLASSES),
    )
    model = train(data, options.epochs, options.batch)
    score = accuracy(model, data["test_images"], data["test_labels"])
    write_onnx(model, options.output / "fashion_resnet.onnx", score)
    first = accuracy(model, data["test_images"][:1000], data["test_labels"][:1000])
    print(f"accuracy {score:.4f} on all 10,000 test images, {first:.4f} on the 1,000 embedded")


if __name__ == "__main__":
    main()
