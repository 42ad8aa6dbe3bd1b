"""What can be measured: AToken, other tokenizers, and the codecs that everybody has."""
