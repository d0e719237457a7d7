"""Text from a model: prefill and decode with a KV cache, sampling, and streams of whole characters."""
