"""The steps of `speechgraft quickstart`: from nothing to a speech recogniser that works, in minutes on a CPU.

Made to be read as well as run: `graft` and `fine_tune` are what any fine-tuning looks like, `transcribe` any use.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import soundfile
import torch
from tqdm import tqdm
from transformers import (
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    BertTokenizer,
    Seq2SeqTrainingArguments,
    Trainer,
    set_seed,
)
from transformers.trainer_callback import ProgressCallback
from transformers.utils import logging

from ..modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel
from ..modeling.quickstart_parts import (
    MAX_TOKENS,
    SPEC_AUGMENT,
    CtcPretrainingModel,
    make_feature_extractor,
    make_text_decoder,
    train_tokenizer,
)
from ..modeling.speech_figures import losses_by_step, plot_cross_attention, plot_losses
from ..modeling.trainer_speech_seq2seq import SpeechSeq2SeqTrainer
from ..processing.collation_speech_seq2seq import SpeechSeq2SeqCollator
from ..processing.espeak_speech import SpokenUtterance
from ..processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor, pad_labels
from ..processing.quickstart_corpus import draw_sentences, speak_held_out_clips, speak_training_clips
from ..processing.speech_metrics import make_compute_metrics
from .quickstart import QuickstartOptions

CTC_WEIGHT = 0.3
TEXT_ONLY_SENTENCES = 5_000
LOGGING_STEPS = 10

Row = dict[str, Any]


@dataclass
class QuickstartResult:
    """What came out.

    Attributes:
        wer_greedy, wer_beam: word error rates on the held-out clips, as fractions.
        transcripts: file name, reference and hypothesis of the clips that the reloaded model transcribed.
        seconds: time that each step took, by its name.
    """

    wer_greedy: float = float("nan")
    wer_beam: float = float("nan")
    transcripts: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Announce a step, and note how long it took."""
        print(f"\n{len(self.seconds) + 1}. {name}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars for writing and reading files of a few megabytes between those of training, and no warnings."""
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one core: layers this small gain little from a second, and wait long for one that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
@quiet_transformers()
def run_quickstart(options: QuickstartOptions) -> QuickstartResult:
    """Do everything, print what happens, and leave the model, pictures and clips in `options.output_dir`."""
    set_seed(options.seed)
    folder, result = options.output_dir, QuickstartResult()
    folder.mkdir(parents=True, exist_ok=True)
    sentences = draw_sentences(options.train_clips, options.held_out_clips, TEXT_ONLY_SENTENCES, options.seed)
    tokenizer = train_tokenizer(sentences.train + sentences.text_only)
    processor = SpeechSeq2SeqProcessor(make_feature_extractor(), tokenizer)

    with result.timed("Speak the corpus with espeak-ng"):
        training_clips = speak_training_clips(sentences.train, options.seed, "training voices")
        held_out_clips = speak_held_out_clips(sentences.held_out, options.seed, "held-out voices")
        clip_paths = write_clips(held_out_clips[: options.show], folder / "held-out-clips")
    with result.timed("Compute log-mel features"):
        training_rows = make_rows(processor, training_clips, "training")
        held_out_rows = make_rows(processor, held_out_clips, "held out")
    with result.timed("Pretrain a speech encoder (Speech2Text, CTC)"):
        encoder_log = pretrain_encoder(training_rows, processor, folder / "pretrained-encoder", options)
    with result.timed("Pretrain a text decoder (BERT, next token)"):
        decoder_log = pretrain_decoder(
            sentences.train + sentences.text_only, tokenizer, folder / "pretrained-decoder", options
        )
    with result.timed("Graft them together and fine-tune"):
        model = graft(folder / "pretrained-encoder", folder / "pretrained-decoder")
        trainer = make_trainer(model, processor, training_rows, held_out_rows, options)
        trainer.train()
    with result.timed(f"Measure on {len(held_out_rows)} held-out sentences in held-out voices"):
        result.wer_greedy = trainer.evaluate(num_beams=1)["eval_wer"]
        result.wer_beam = trainer.evaluate(num_beams=options.num_beams)["eval_wer"]
        print(f"word error rate: greedy {result.wer_greedy:.1%}, {options.num_beams} beams {result.wer_beam:.1%}")
    with result.timed("Save, reload with AutoModel and transcribe held-out clips"):
        model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        references = [clip.text for clip in held_out_clips]
        result.transcripts = transcribe(folder / "model", clip_paths, references, options.num_beams)
    with result.timed("Draw the losses and one clip's cross-attention"):
        draw_losses(encoder_log, decoder_log, trainer.state.log_history, folder / "loss.png")
        draw_cross_attention(model, processor, held_out_clips[0], folder / "cross_attention.png")
    print_summary(result, options)
    return result


def write_clips(clips: Sequence[SpokenUtterance], folder: Path) -> list[Path]:
    """Write clips as an audio folder: WAV files and a metadata.csv with their transcripts."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:03d}-{clip.voice.name.replace('+', '-')}.wav" for index, clip in enumerate(clips)]
    for path, clip in zip(paths, clips, strict=True):
        soundfile.write(path, clip.audio, clip.sampling_rate)
    lines = ["file_name,text", *(f"{path.name},{clip.text}" for path, clip in zip(paths, clips, strict=True))]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def make_rows(processor: SpeechSeq2SeqProcessor, clips: Sequence[SpokenUtterance], description: str) -> list[Row]:
    """Features and labels of each clip, computed once instead of in every epoch."""
    rows = []
    for clip in tqdm(clips, desc=description, unit="clip", dynamic_ncols=True):
        features = processor(audio=[clip.audio], sampling_rate=clip.sampling_rate)
        row = {name: values[0] for name, values in features.items()}
        rows.append({**row, "labels": processor.label_ids(clip.text)})
    return rows


def pretrain_encoder(
    rows: list[Row], processor: SpeechSeq2SeqProcessor, folder: Path, options: QuickstartOptions
) -> list[dict[str, Any]]:
    """Pretrain a speech encoder by CTC and save it with its feature extractor; returns Trainer's log."""

    def collate(batch: list[Row]) -> dict[str, torch.Tensor]:
        padded = processor.pad(batch, return_tensors="pt")
        labels = pad_labels([row["labels"][:-1] for row in batch])  # CTC needs no end token
        return {**padded, "labels": torch.from_numpy(labels)}

    tokenizer = processor.tokenizer
    model = CtcPretrainingModel(len(tokenizer), tokenizer.pad_token_id)
    arguments = training_arguments(folder, options, options.encoder_steps, 2e-3)
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=rows, processing_class=processor)  # type: ignore[arg-type]
    show_progress(trainer, "CTC")
    trainer.train()
    model.save_encoder(folder)
    processor.feature_extractor.save_pretrained(folder)
    return trainer.state.log_history


def pretrain_decoder(
    sentences: list[str], tokenizer: BertTokenizer, folder: Path, options: QuickstartOptions
) -> list[dict[str, Any]]:
    """Pretrain a BERT to predict the next token and save it with its tokenizer; returns Trainer's log."""

    def collate(batch: list[str]) -> dict[str, torch.Tensor]:
        encoded = tokenizer(batch, padding=True, return_tensors="pt", return_token_type_ids=False)
        labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
        return {**encoded, "labels": labels}

    model = make_text_decoder(tokenizer)
    arguments = training_arguments(folder, options, options.decoder_steps, 2e-3)
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=sentences)  # type: ignore[arg-type]
    show_progress(trainer, "next token")
    trainer.train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return trainer.state.log_history


def graft(encoder_folder: Path, decoder_folder: Path) -> SpeechSeq2SeqModel:
    """Warm-start a speech-to-text model from two pretrained folders, with a CTC head trained beside the decoder."""
    model = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(
        encoder_folder, decoder_folder, ctc_weight=CTC_WEIGHT, max_length=MAX_TOKENS, **SPEC_AUGMENT
    )
    print(f"encoder from {encoder_folder}, decoder from {decoder_folder}")
    print(f"new, to be trained: {', '.join(model.config.newly_initialized or [])}", flush=True)
    return model


def make_trainer(
    model: SpeechSeq2SeqModel,
    processor: SpeechSeq2SeqProcessor,
    training_rows: list[Row],
    held_out_rows: list[Row],
    options: QuickstartOptions,
) -> SpeechSeq2SeqTrainer:
    """The Trainer that fine-tunes the model, and decodes the held-out clips when it evaluates."""
    trainer = SpeechSeq2SeqTrainer(
        model,
        training_arguments(
            options.output_dir,
            options,
            options.steps,
            1e-3,
            per_device_eval_batch_size=50,
            predict_with_generate=True,
        ),
        data_collator=SpeechSeq2SeqCollator(processor, model.config),
        train_dataset=training_rows,  # type: ignore[arg-type]
        eval_dataset=held_out_rows,  # type: ignore[arg-type]
        processing_class=processor,
        compute_metrics=make_compute_metrics(processor),
    )
    show_progress(trainer, "fine-tuning")
    return trainer


def training_arguments(
    folder: Path, options: QuickstartOptions, steps: int, learning_rate: float, **more: Any
) -> Seq2SeqTrainingArguments:
    """What the three training runs share, and `more` for one of them."""
    shared: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": max(1, steps // 10),
        "adam_beta2": 0.98,
        "weight_decay": 0.01,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "logging_steps": LOGGING_STEPS,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": False,
        "seed": options.seed,
    }
    return Seq2SeqTrainingArguments(**{**shared, **more})


class _LossOnTheBar(ProgressCallback):
    """Trainer's progress bar, with a title and the latest loss on it instead of a line for every log."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_begin(*args, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.title)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        losses = {name: value for name, value in (logs or {}).items() if name.endswith("loss")}
        if self.training_bar is not None and "train_loss" not in losses:
            self.training_bar.set_postfix(losses, refresh=False)


def show_progress(trainer: Trainer, title: str) -> None:
    """Give a Trainer a progress bar that tells the loss."""
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_LossOnTheBar(title))


def transcribe(
    model_folder: Path, paths: Sequence[Path], references: Sequence[str], num_beams: int
) -> list[tuple[str, str, str]]:
    """Load a saved model as any user would, transcribe files, and print what was said and what was heard."""
    model = AutoModelForSpeechSeq2Seq.from_pretrained(model_folder)
    processor = AutoProcessor.from_pretrained(model_folder)
    inputs = processor(audio=[str(path) for path in paths], return_tensors="pt")
    texts = processor.batch_decode(model.generate(**inputs, num_beams=num_beams), skip_special_tokens=True)
    rows = [(path.name, said, heard) for path, said, heard in zip(paths, references, texts, strict=False)]
    for name, said, heard in rows:
        print(f"{name}\n  said:  {said}\n  heard: {heard}")
    return rows


def draw_losses(
    encoder_log: Sequence[Mapping[str, Any]],
    decoder_log: Sequence[Mapping[str, Any]],
    fine_tuning_log: Sequence[Mapping[str, Any]],
    path: Path,
) -> None:
    """Draw the losses of the three training runs."""
    names = ("loss", "decoder_loss", "ctc_loss")
    panels = {
        "pretraining the speech encoder": {"CTC": losses_by_step(encoder_log)},
        "pretraining the text decoder": {"next token": losses_by_step(decoder_log)},
        "fine-tuning the grafted model": {
            name.replace("_", " "): losses_by_step(fine_tuning_log, name) for name in names
        },
    }
    plot_losses(panels, path)


@torch.no_grad()
def draw_cross_attention(
    model: SpeechSeq2SeqModel, processor: SpeechSeq2SeqProcessor, clip: SpokenUtterance, path: Path
) -> None:
    """Draw what the last decoder layer listened to for each token of its own transcript of a clip."""
    model.eval()
    inputs = processor(audio=[clip.audio], sampling_rate=clip.sampling_rate, return_tensors="pt")
    token_ids = cast(Any, model).generate(**inputs, num_beams=1)  # [1, S + 1], from the start token
    outputs = model(**inputs, decoder_input_ids=token_ids[:, :-1], output_attentions=True)
    attention = outputs.cross_attentions[-1][0].mean(dim=0)  # [S, T]
    tokens = processor.tokenizer.convert_ids_to_tokens(token_ids[0, 1:])
    words = [(word.text, word.start_s) for word in clip.words]
    title = f"{clip.voice.name}: last decoder layer, mean over its heads; dotted: where espeak-ng starts each word"
    frame_s = model.config.inputs_to_logits_ratio * processor.input_step_s
    plot_cross_attention(attention.numpy(), tokens, frame_s, path, title, words)


def print_summary(result: QuickstartResult, options: QuickstartOptions) -> None:
    """Print the times, the word error rates, and what to do next."""
    print("\nseconds")
    for name, seconds in result.seconds.items():
        print(f"{seconds:7.1f}  {name}")
    print(f"{sum(result.seconds.values()):7.1f}  in all")
    print("\nword error rate on held-out sentences and voices")
    print(f"{result.wer_greedy:7.1%}  greedy")
    print(f"{result.wer_beam:7.1%}  {options.num_beams} beams")
    folder = options.output_dir
    print(f"\nmodel in {folder / 'model'}, pictures in {folder / 'loss.png'} and {folder / 'cross_attention.png'}")
    print(f"next: speechgraft transcribe {folder / 'held-out-clips'} --model {folder / 'model'}")
