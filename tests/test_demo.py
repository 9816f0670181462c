"""The demo: one command from weights to a report, in a folder of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ptsr_edge.checkpoint import embedded_checkpoint
from ptsr_edge.config import DEFAULT_MODEL, named_model
from ptsr_edge.demo import BUDGETS, main
from ptsr_edge.manifest import read_bundle
from ptsr_edge.profile_record import read_profile

pytest.importorskip("onnxruntime")
