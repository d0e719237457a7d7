"""`import lowmem.hf`, and transformers loads packed models: `AutoModelForCausalLM.from_pretrained(folder)`."""

from lowmem.models.packed_quantizer import register

register()
