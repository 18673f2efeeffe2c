"""Networks behind a few verbs each; the only place that names diffusers and transformers."""
