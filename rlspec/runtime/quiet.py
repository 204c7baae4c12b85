"""A run's own lines say what matters; progress bars and usage reports of libraries do not belong among them."""

from __future__ import annotations

import os
import warnings

from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Silence progress bars, chatty loggers and usage reports; errors still come through."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*pin_memory.*", category=UserWarning)
