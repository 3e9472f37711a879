"""Tuning on other machines, which a tracker of TVM's RPC lends: docs/remote-boards.md."""
