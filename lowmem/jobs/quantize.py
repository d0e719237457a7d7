"""`lowmem quantize`: a model in, a folder of codes out that was read back and judged before it got its name.

Everything happens in a hidden folder beside the result, named after the request: the original's log-probabilities and
answers, one file for each coded block, and the packed model. So a run that was killed goes on at the block where it
was, one that failed its gate is finished by the same command with `--force` or other limits, and the result appears
whole. The original is gone from memory when the packed model is loaded from its files for the gate.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import lowmem
from lowmem.config.quantize import QuantizeConfig
from lowmem.errors import Interrupted, QualityGateError
from lowmem.evaluate.gate import GateReport, Sample, answer_all, compare, judge, keep_original
from lowmem.events import BlockCoded, Notice, Sink
from lowmem.jobs.folder import write_atomically
from lowmem.jobs.quantize_bits import Options, choose_options, require_size
from lowmem.jobs.quantize_memory import Meter, predict, require_memory
from lowmem.jobs.quantize_recover import recover
from lowmem.jobs.quantize_result import RECOVERED, Layer, QuantizeReport, publish, refuse_output, write_record
from lowmem.jobs.quantize_source import Asked, Material, ask, material, refuse_uncoded, request_key
from lowmem.jobs.quantize_work import forget_others, working_folder
from lowmem.models.load import LoadedModel, load_config, load_model, load_tokenizer, meta_model
from lowmem.models.packed_folder import read_record, save_packed
from lowmem.models.source import ModelSource
from lowmem.plan.quantizing import QuantizingBill
from lowmem.quant.codec import Kind
from lowmem.quant.model import block_linears, decoder_blocks, quantize_blocks, quantize_embeddings
from lowmem.quant.quantize import QuantizedWeight
from lowmem.quant.store import WeightStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKED, PARTS = "packed", "parts"


def quantize(config: QuantizeConfig, *, sink: Sink, force: bool = False, overwrite: bool = False) -> QuantizeReport:
    """The folder of the result holds the packed model, its record and its report.

    `force`: also when the gate fails, which the record then says. `overwrite`: a quantized model of that name is
    replaced once the new one is whole. Raises `ConfigError` and `BudgetError` before weights are read,
    `QualityGateError`, leaving no folder, and `Interrupted`.
    """
    asked, text, bill = _prepare(config, sink, overwrite=overwrite)
    require_memory(asked, bill)
    loaded = load_model(asked.source, device=asked.device, sink=sink)
    key = request_key(loaded.model, asked, text.calibration)
    with working_folder(asked.output, key) as work:
        try:
            return _Job(asked, text, work, key, bill.phases, sink).run(loaded, force=force)
        except KeyboardInterrupt as interrupt:
            done = len(list((work / PARTS).glob("block-*.safetensors")))
            raise Interrupted(
                f"interrupted: {done} coded blocks are kept in {work}; the same command goes on from there"
            ) from interrupt


def plan_quantize(config: QuantizeConfig, *, sink: Sink) -> QuantizingBill:
    """What `quantize` would take, without reading weights. Raises what `quantize` raises before it reads them."""
    return _prepare(config, sink, overwrite=True)[2]


def _prepare(config: QuantizeConfig, sink: Sink, *, overwrite: bool) -> tuple[Asked, Material, QuantizingBill]:
    """Everything that can be refused without weights has been."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    asked = ask(config)
    refuse_output(asked.output, overwrite=overwrite)
    refuse_uncoded(asked.source, config.skip)
    require_size(meta_model(asked.source), config, asked.stored_dtype)
    kind = load_config(asked.source).model_type
    text = material(asked, load_tokenizer(asked.source), model_type=kind, sink=sink)
    return asked, text, predict(asked, text)


@dataclass
class _Job:
    """One request with its text and its working folder."""

    asked: Asked
    text: Material
    work: Path
    key: str
    predicted: Mapping[str, int]
    sink: Sink
    layers: list[Layer] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def run(self, loaded: LoadedModel, *, force: bool) -> QuantizeReport:
        packed, tokenizer = self.work / PACKED, loaded.tokenizer
        meter = Meter(self.work / "memory.json", self.predicted)
        before = self._original(loaded.model, tokenizer, meter)
        store = WeightStore(self.work / PARTS, self.key)
        if not (packed / "config.json").is_file():
            self._code(loaded.model, store, meter)
            self._save(loaded, store, packed)
        del loaded
        self.layers = [Layer.of(name, weight) for name, weight in _stored(store)]
        sizes, gate = read_record(packed)["sizes"], self._gate(packed, tokenizer, before)
        report = QuantizeReport(
            folder=self.asked.output,
            linear_bits=sizes["linear_bits"],
            file_bits=sizes["file_bits"],
            file_bytes=sizes["file_bytes"],
            parameters=sizes["parameters"],
            seconds=time.monotonic() - self.began,
            gate=gate,
            layers=tuple(self.layers),
            memory=meter.record(),
        )
        if self.asked.config.recover.steps:
            report = self._recovered(report, packed, tokenizer, before)
        return self._finish(report, packed, force=force)

    def _original(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, meter: Meter) -> tuple[Sample, ...]:
        """The original has been read: its log-probabilities are on the disk, its answers there and here."""
        file, answers = self._readings()
        if not file.is_file():
            with meter.phase("original", model):
                keep_original(model, self.text.gate, file)
        if not answers.is_file():
            found = self._answers(model, tokenizer)
            write_atomically(answers, json.dumps([dataclasses.asdict(sample) for sample in found]))
        return tuple(Sample(**sample) for sample in json.loads(answers.read_text()))

    def _readings(self) -> tuple[Path, Path]:
        """The files of the original's readings, which depend on the gate's text and on the prompts."""
        read = _short_hash([text.input_ids.tolist() for text in self.text.gate])
        said = _short_hash([list(self.text.prompts), self.asked.config.gate.max_new_tokens])
        return self.work / f"original-{read}.fp32", self.work / f"answers-{said}.json"

    def _code(self, model: PreTrainedModel, store: WeightStore, meter: Meter) -> None:
        """The store holds every coded weight, `model` what they decode to."""
        config = self.asked.config
        options = choose_options(model, self.text.sensitivity, config, self.work, self.asked.stored_dtype)
        batches = [{name: t.to(model.device) for name, t in text.inputs.items()} for text in self.text.calibration]
        progress = _Blocks(model, options, store, self.sink)

        def took(name: str, weight: QuantizedWeight) -> None:
            if progress.took(name, weight):
                meter.done()

        with meter.phase("blocks", model):
            quantize_blocks(model, batches, options.of, store, on_weight=took, workers=config.workers)
        if config.embeddings < 16:
            kind: Kind = "int4" if config.embeddings == 4 else "int8"
            with meter.phase("tables", model):
                quantize_embeddings(model, kind, store)

    def _save(self, loaded: LoadedModel, store: WeightStore, packed: Path) -> None:
        shutil.rmtree(packed, ignore_errors=True)
        weights = dict(_stored(store))
        # What is not coded goes back to the checkpoint's number format; codes do not change.
        model: Any = loaded.model
        model.to(self.asked.stored_dtype)
        record = {
            "lowmem": lowmem.__version__,
            "source": self.asked.config.model,
            "calibration_tokens": self.text.tokens,
            "request": self.key,
        }
        save_packed(model, weights, loaded.tokenizer, packed, record=record)

    def _gate(self, folder: Path, tokenizer: PreTrainedTokenizerBase, before: tuple[Sample, ...]) -> GateReport:
        """The findings on the model in `folder` (packed, or a run on it), loaded from its files."""
        asked = self.asked.source
        source = ModelSource(str(folder), dtype=asked.dtype, trust_remote_code=asked.trust_remote_code)
        model = load_model(source, device=self.asked.device, adapter="keep", sink=self.sink).model
        closeness = compare(model, self.text.gate, self._readings()[0])
        return judge(closeness, before, self._answers(model, tokenizer), self.asked.config.gate)

    def _answers(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[Sample, ...]:
        tokens = self.asked.config.gate.max_new_tokens
        return answer_all(model, tokenizer, self.text.prompts, max_new_tokens=tokens)

    def _recovered(
        self, report: QuantizeReport, packed: Path, tokenizer: PreTrainedTokenizerBase, before: tuple[Sample, ...]
    ) -> QuantizeReport:
        """The report with the gate of the model after recovery; that one decides."""
        run = recover(self.asked, packed, self.work / RECOVERED, self.sink)
        gate = self._gate(run, tokenizer, before)
        seconds = time.monotonic() - self.began
        name = self.asked.output / RECOVERED
        return dataclasses.replace(report, gate=gate, unrecovered=report.gate, recovered=name, seconds=seconds)

    def _finish(self, report: QuantizeReport, packed: Path, *, force: bool) -> QuantizeReport:
        """The folder has its name, or there is none. Raises `QualityGateError`."""
        if not report.gate.passed:
            said = "; ".join(report.gate.failures)
            if not force:
                raise QualityGateError(
                    f"the quantized model failed its quality gate: {said}. More bits, more calibration text, "
                    f"rotation=harp or recover.steps may help; nothing was written to {report.folder}, what was coded "
                    f"is kept in {self.work}, and the same command with --force writes it"
                )
            self.sink(Notice(f"--force: written although the quality gate failed: {said}"))
        write_record(packed, self.asked.config, report, forced=not report.gate.passed)
        publish(packed, self.work / RECOVERED, report)
        shutil.rmtree(self.work, ignore_errors=True)
        forget_others(report.folder)
        return report


class _Blocks:
    """Says when each block is done."""

    def __init__(self, model: PreTrainedModel, options: Options, store: WeightStore, sink: Sink) -> None:
        self._root, blocks = decoder_blocks(model)
        self._total, self._sink = len(blocks), sink
        self._left = [0] * self._total
        for name in block_linears(model):
            self._left[self._block(name)] += options.of(name) is not None
        self._found = [store.path(f"block-{index:03d}").exists() for index in range(self._total)]
        self._losses: list[float] = []
        self._since = time.monotonic()

    def took(self, name: str, weight: QuantizedWeight) -> bool:
        """Whether this was the last layer of a block that was coded now, and not read."""
        if not name.startswith(f"{self._root}."):
            return False
        index = self._block(name)
        self._losses.append(weight.loss)
        self._left[index] -= 1
        if self._left[index]:
            return False
        now = time.monotonic()
        seconds = 0.0 if self._found[index] else now - self._since
        self._sink(BlockCoded(index + 1, self._total, sum(self._losses) / len(self._losses), seconds))
        self._losses, self._since = [], now
        return not self._found[index]

    def _block(self, name: str) -> int:
        return int(name.removeprefix(f"{self._root}.").partition(".")[0])


def _stored(store: WeightStore) -> Iterator[tuple[str, QuantizedWeight]]:
    """Every coded weight, in the order of the blocks, the tables last."""
    for file in sorted(store.folder.glob("*.safetensors")):
        yield from (store.load(file.stem) or {}).items()


def _short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
