"""Networks behind a few verbs each; the only place that names diffusers and transformers."""

import logging


def _concerns_us(record: logging.LogRecord) -> bool:
    """Drops the advice to install torchvision: pictures are prepared in plain torch and PIL."""
    return "requires torchvision" not in record.getMessage()


logging.getLogger("transformers.utils.import_utils").addFilter(_concerns_us)
