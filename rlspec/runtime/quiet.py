"""A run's own lines say what matters; progress bars and usage reports of libraries do not belong among them."""

from __future__ import annotations

import os
import warnings

from huggingface_hub import constants
from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Silence progress bars, chatty loggers and usage reports; errors still come through."""
    if "HF_HUB_DISABLE_TELEMETRY" not in os.environ:
        # TRL's trainers report in a thread, which looks up a host while accelerate empties and refills the process's
        # environment: the C library then reads freed memory, and the run dies of a segmentation fault.
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # for processes of ours
        constants.HF_HUB_DISABLE_TELEMETRY = True  # read when it was imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*pin_memory.*", category=UserWarning)
