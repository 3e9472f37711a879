"""The embedded demo: a trained network and labelled images to judge it by (see README.md)."""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).with_name("fashion_resnet.onnx")
IMAGES = Path(__file__).with_name("fashion_test.npz")
