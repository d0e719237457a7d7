"""`import lowmem.hf`, and transformers loads packed models: `AutoModelForCausalLM.from_pretrained(folder)`.

peft keeps what it is told of layers in a config object and does not save it, so an adapter on packed layers begins with
`get_peft_model(model, register_packed_layers(LoraConfig(...), model))` and is read by `load_adapter(model, folder)`.
"""

from lowmem.models.packed_lora import load_adapter, register_packed_layers
from lowmem.models.packed_quantizer import register

__all__ = ["load_adapter", "register", "register_packed_layers"]

register()
