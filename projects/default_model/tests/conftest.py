"""The fixtures of the package's tests that these tests use, too: made photos and a small model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SHARED = Path(__file__).parents[3] / "tests" / "conftest.py"
_NAME = "vip_llava_test_fixtures"

if _NAME not in sys.modules:
    _spec = importlib.util.spec_from_file_location(_NAME, _SHARED)
    assert _spec is not None and _spec.loader is not None
    sys.modules[_NAME] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_NAME])

labelled_folder = sys.modules[_NAME].labelled_folder
lite_model = sys.modules[_NAME].lite_model
lite_processor = sys.modules[_NAME].lite_processor
model_at_hand = sys.modules[_NAME].model_at_hand
tiny_model_folder = sys.modules[_NAME].tiny_model_folder
