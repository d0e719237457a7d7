"""Loading: the right weights in the right form, complete or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowmem.config.load import dump_run
from lowmem.config.quantization import Int8, Nf4
from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError, FormatError
from lowmem.events import Event
from lowmem.models import quantized
from lowmem.models.load import load_config, load_model, load_tokenizer, meta_model, pad_id
from lowmem.models.source import ModelSource, pick_device
from tests.models.tiny import save_tiny, tiny_model, tiny_tokenizer

# peft 0.21 reads it while it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CPU = torch.device("cpu")
IDS = torch.arange(10, 30).view(2, 10)


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=IDS).logits
    return out


def make_run(folder: Path, base: Path, **keys: object) -> RunConfig:
    """A run folder over `base` without what was trained."""
    config = RunConfig.model_validate(
        {"model": str(base), "dataset": [{"format": "alpaca", "path": "a.jsonl"}], "dtype": "fp32", **keys}
    )
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_run(config))
    return config


def adapter_run(tmp_path: Path) -> tuple[Path, Tensor]:
    """A run folder with a random adapter on a tiny base, and the logits it was trained to."""
    base, run = save_tiny(tmp_path / "base"), tmp_path / "run"
    make_run(run, base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    expected = logits(wrapped.eval())
    wrapped.save_pretrained(str(run / "model"))
    return run, expected


@pytest.mark.parametrize("family", ["opt", "llama", "qwen3", "gpt2"])
def test_a_folder_loads_with_its_weights_in_eval_mode_without_cache(tmp_path: Path, family: str) -> None:
    save_tiny(tmp_path, family)
    loaded = load_model(ModelSource(str(tmp_path), dtype="fp32"), device=CPU)
    assert torch.equal(logits(loaded.model), logits(tiny_model(family)))
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.model.config.use_cache is False
    assert (loaded.name, loaded.folder) == (str(tmp_path), tmp_path)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_take_the_dtype_that_is_asked_for(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    save_tiny(tmp_path, "llama")
    source = ModelSource(str(tmp_path), dtype=name)  # type: ignore[arg-type]
    assert {p.dtype for p in load_model(source, device=CPU).model.parameters()} == {dtype}


def test_tied_weights_are_one_tensor_seen_once(tmp_path: Path) -> None:
    save_tiny(tmp_path, "qwen3")
    model = load_model(ModelSource(str(tmp_path)), device=CPU).model
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_the_attention_implementation_is_used(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    model = load_model(ModelSource(str(tmp_path), attn_implementation="eager"), device=CPU).model
    assert model.config._attn_implementation == "eager"


def test_loading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_tiny(tmp_path, "llama")
    capfd.readouterr()
    load_model(ModelSource(str(tmp_path)), device=CPU)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [Nf4(), Nf4(double_quant=False), Int8()])
def test_a_quantized_base_stays_near_the_original(tmp_path: Path, kind: Nf4 | Int8) -> None:
    save_tiny(tmp_path, "llama")
    source = ModelSource(str(tmp_path), dtype="fp32", quantization=kind)
    model = load_model(source, device=CPU).model
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == (torch.uint8 if isinstance(kind, Nf4) else torch.int8)
    exact = logits(tiny_model("llama"))
    assert (logits(model) - exact).norm() < 0.5 * exact.norm()


def test_quantization_without_bitsandbytes_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"nf4 needs bitsandbytes.*pip install 'lowmem\[bnb\]'"):
        quantized.quantization_request(Nf4(), torch.bfloat16)


def test_an_adapter_run_loads_beside_its_base_exactly(tmp_path: Path) -> None:
    run, expected = adapter_run(tmp_path)
    loaded = load_model(ModelSource(str(run), dtype="fp32"), device=CPU, adapter="keep")
    assert torch.equal(logits(loaded.model), expected)


def test_a_merged_adapter_gives_an_ordinary_model(tmp_path: Path) -> None:
    run, expected = adapter_run(tmp_path)
    model = load_model(ModelSource(str(run), dtype="fp32"), device=CPU).model
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_an_adapter_stays_beside_a_quantized_base_and_refuses_to_be_merged(tmp_path: Path) -> None:
    run, _ = adapter_run(tmp_path)
    source = ModelSource(str(run), dtype="fp32", quantization=Nf4())
    kept = load_model(source, device=CPU, adapter="keep").model
    assert any("lora" in name for name, _ in kept.named_parameters())
    with pytest.raises(ConfigError, match="is an adapter and cannot be folded into a nf4 base"):
        load_model(source, device=CPU)


def test_a_run_can_stand_on_a_run(tmp_path: Path) -> None:
    first, _ = adapter_run(tmp_path)
    merged = load_model(ModelSource(str(first), dtype="fp32"), device=CPU).model
    second = tmp_path / "second"
    make_run(second, first)
    merged.save_pretrained(second / "model")
    loaded = load_model(ModelSource(str(second), dtype="fp32"), device=CPU)
    assert torch.equal(logits(loaded.model), logits(merged))
    assert loaded.tokenizer("the cat")["input_ids"] == tiny_tokenizer()("the cat")["input_ids"]


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    run, _ = adapter_run(tmp_path)
    file = run / "model" / "adapter_model.safetensors"
    save_file({name: torch.zeros(3, 3) for name in load_file(file)}, file)
    with pytest.raises(FormatError, match=r"the adapter in .* does not fit its base model"):
        load_model(ModelSource(str(run)), device=CPU)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    file = save_tiny(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(FormatError, match=r"model.safetensors is damaged or truncated"):
        load_model(ModelSource(str(tmp_path)), device=CPU)


def test_a_missing_tensor_is_named_instead_of_being_drawn(tmp_path: Path) -> None:
    file = save_tiny(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"lacks 1 of the tensors .* first model.norm.weight"):
        load_model(ModelSource(str(tmp_path)), device=CPU)


def test_a_misshaped_tensor_is_named(tmp_path: Path) -> None:
    file = save_tiny(tmp_path) / "model.safetensors"
    save_file(load_file(file) | {"model.norm.weight": torch.ones(7)}, file, metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"has another shape for 1 of the tensors .* first model.norm.weight"):
        load_model(ModelSource(str(tmp_path)), device=CPU)


def test_a_folder_without_weights_or_tokenizer_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match="holds no tokenizer that can be read"):
        load_tokenizer(ModelSource(str(tmp_path)))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FormatError, match="cannot be read as a model"):
        load_model(ModelSource(str(tmp_path)), device=CPU)


def test_a_model_that_is_no_decoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ConfigError, match="is of type 't5', which is not a causal language model"):
        load_config(ModelSource(str(tmp_path)))


def test_an_attention_that_the_architecture_lacks_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "bloom")
    for load in (partial(load_model, device=CPU), meta_model):
        with pytest.raises(ConfigError, match="cannot be run with sdpa; use attn_implementation: eager"):
            load(ModelSource(str(tmp_path)))
    source = ModelSource(str(tmp_path), dtype="fp32", attn_implementation="eager")
    assert torch.equal(logits(load_model(source, device=CPU).model), logits(tiny_model("bloom")))


@pytest.mark.parametrize("load", [load_config, load_tokenizer])
def test_a_hub_model_out_of_reach_says_what_works(load: object) -> None:
    with pytest.raises(ConfigError, match=r"could not be fetched from the hub .*did you mean tiny-reasoner"):
        load(ModelSource("somebody/tiny-reasonr"))  # type: ignore[operator]


def test_remote_code_is_announced(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    events: list[Event] = []
    source = ModelSource(str(tmp_path), trust_remote_code=True)
    load_model(source, device=CPU, sink=events.append)
    assert ["trust_remote_code is on" in str(event) for event in events] == [True]


def test_the_tokenizer_is_padded_and_takes_a_chat_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    save_tiny(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelSource(str(tmp_path), chat_template="{{ messages[0].content }}"))
    assert loaded.pad_token == "<eos>"
    assert pad_id(loaded) == 1
    assert pad_id(tokenizer) == 0
    said = loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert said == "hi"


def test_a_runs_chat_template_is_used_for_its_model(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    make_run(tmp_path / "run", base, chat_template="run: {{ messages[0].content }}")
    tiny_model().save_pretrained(tmp_path / "run" / "model")
    tokenizer = load_tokenizer(ModelSource(str(tmp_path / "run")))
    assert tokenizer.chat_template == "run: {{ messages[0].content }}"


def test_a_meta_model_has_the_shapes_of_the_folder_and_no_memory(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    meta = meta_model(ModelSource(str(tmp_path), dtype="fp32"))
    real = tiny_model("llama")
    assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert not meta.training


def test_a_run_with_an_adapter_plans_as_its_base(tmp_path: Path) -> None:
    run, _ = adapter_run(tmp_path)
    assert load_config(ModelSource(str(run))).model_type == "qwen3"


def test_a_source_carries_the_model_keys_of_a_run() -> None:
    config = RunConfig.model_validate(
        {
            "model": "m",
            "revision": "r",
            "dtype": "fp16",
            "attn_implementation": "eager",
            "trust_remote_code": True,
            "chat_template": "t",
            "quantization": {"kind": "nf4"},
            "dataset": [{"format": "alpaca", "path": "a.jsonl"}],
        }
    )
    assert ModelSource.from_config(config) == ModelSource("m", "r", "fp16", "eager", True, Nf4(), "t")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(ConfigError, match="torch sees no CUDA device; use device: cpu"):
        pick_device("cuda")


PEAK = """
import sys, threading, time
import torch
torch.set_num_threads(1)
from lowmem.models.load import load_model
from lowmem.models.source import ModelSource
import transformers.models.llama.modeling_llama

def anonymous():
    status = open("/proc/self/status").read()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

load_model(ModelSource(sys.argv[1], dtype="fp32"), device=torch.device("cpu"))
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.001)
thread = threading.Thread(target=watch)
thread.start()
model = load_model(ModelSource(sys.argv[2], dtype=sys.argv[3]), device=torch.device("cpu")).model
done = True
thread.join()
print(peak - before, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_loading_a_sharded_checkpoint_needs_the_model_and_one_shard(tmp_path: Path, dtype: str) -> None:
    from lowmem.models.shapes import random_model
    from tests.models.tiny import tiny_config

    config = tiny_config("llama")
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 768, 2304, 6
    save_tiny(tmp_path / "small", "llama")
    shard = 32 * 2**20
    random_model(config, dtype=torch.float32).save_pretrained(tmp_path / "large", max_shard_size=shard)
    tiny_tokenizer().save_pretrained(tmp_path / "large")
    assert len(list((tmp_path / "large").glob("*.safetensors"))) > 4
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "large"), dtype]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, model_bytes = map(int, said.stdout.split())
    assert peak < model_bytes + shard + 8 * 2**20


def test_an_unreachable_hub_is_told_of_once_and_its_clients_log_is_left_as_it_was() -> None:
    import logging

    from lowmem.models.quiet import quiet_transformers

    hub = logging.getLogger("huggingface_hub")
    before = hub.level
    with quiet_transformers():
        assert not hub.isEnabledFor(logging.WARNING)
    assert hub.level == before
