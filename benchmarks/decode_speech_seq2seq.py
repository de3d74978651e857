"""Generation of `SpeechSeq2SeqModel` and `SpeechEncoderDecoderModel` side by side, on the same random weights.

    python benchmarks/decode_speech_seq2seq.py                     # greedy and beam 5, batch 1 and 8
    python benchmarks/decode_speech_seq2seq.py --pairs large       # wav2vec2-large + bert-base: with a projection
    python benchmarks/decode_speech_seq2seq.py --share             # what of a decode step is not matrix products
    python benchmarks/decode_speech_seq2seq.py --ctc               # what the CTC head's say costs on top of beam 5

Sizes are those of wav2vec2-base (or -large) and bert-base. Runs alternate between the two classes, and so does which
of them goes first, so that a machine whose speed drifts slows both; medians and the ratio of medians are printed, of
the whole call and of what follows the encoder. Both must give the same tokens.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm
from transformers import BertConfig, Wav2Vec2Config

from speechgraft import SpeechSeq2SeqConfig, SpeechSeq2SeqModel

SAMPLING_RATE = 16_000  # Hz
TINY_LAYERS = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
DECODERS = {"tiny": TINY_LAYERS}  # all others are bert-base
ENCODERS = {
    "tiny": {**TINY_LAYERS, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
    },
}


def build(encoder: str, **fields: Any) -> SpeechSeq2SeqModel:
    """Our model, with random weights."""
    torch.manual_seed(0)
    config = SpeechSeq2SeqConfig(
        encoder=Wav2Vec2Config(**ENCODERS[encoder]),
        decoder=BertConfig(**DECODERS.get(encoder, {})),
        decoder_start_token_id=101,
        eos_token_id=102,
        pad_token_id=0,
        **fields,
    )
    return SpeechSeq2SeqModel(config).eval()


def counted(model: torch.nn.Module, generate: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, tuple[int, int]]:
    """What a call returns, how often it projects the encoder's output, and how often it works the mask out."""
    counts = {"projections": 0, "masks": 0}
    backbone = getattr(model.encoder, "backbone", model.encoder)
    places = (getattr(model, "enc_to_dec_proj", None), getattr(model.encoder, "projection", None))
    projection = next((place for place in places if place is not None), None)
    mask = backbone._get_feature_vector_attention_mask

    def counting_mask(*args, **kwargs):
        counts["masks"] += 1
        return mask(*args, **kwargs)

    def count_projection(*_):
        counts["projections"] += 1

    hook = None if projection is None else projection.register_forward_hook(count_projection)
    backbone._get_feature_vector_attention_mask = counting_mask
    try:
        tokens = generate()
    finally:
        del backbone._get_feature_vector_attention_mask
        if hook is not None:
            hook.remove()
    return tokens, (counts["projections"], counts["masks"])


class Stopwatch:
    """Adds up the seconds that a module's forward takes."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.seconds = 0.0
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def _start(self, *_: object) -> None:
        self._began = time.perf_counter()

    def _stop(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began


def interleaved(
    calls: dict[str, Callable[[], torch.Tensor]],
    rounds: int,
    label: str,
    encoders: dict[str, Stopwatch] | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each call, taken in turns, and of what of it is not in the encoder."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    decoding: dict[str, list[float]] = {name: [] for name in calls}
    for turn in tqdm(range(rounds), desc=label, leave=False):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            encoded = encoders[name].seconds if encoders else 0.0
            times[name].append(_seconds(calls[name]))
            encoded = encoders[name].seconds - encoded if encoders else 0.0
            decoding[name].append(times[name][-1] - encoded)
    whole, rest = ({name: statistics.median(each) for name, each in these.items()} for these in (times, decoding))
    return whole, rest


def compare(encoder: str, seconds: float, tokens: int, rounds: int, searches: Sequence[int] = (1, 5)) -> None:
    """Print one row for each search and batch size, 1 and 8: medians, their ratio, and whether tokens agree."""
    ours = build(encoder)
    native: Any = ours.to_native().eval()  # shares every weight
    threads = torch.get_num_threads()
    print(f"\nwav2vec2-{encoder} + bert-base, {seconds:g} s of audio, {tokens} tokens, {threads} threads")
    encoders = {"native": Stopwatch(native.encoder), "ours": Stopwatch(ours.encoder.backbone)}
    print(f"{'':22}{'native s':>10}{'ours s':>10}{'ratio':>8}{'decoding':>10}   projections, masks: native -> ours")
    for beams in searches:
        for batch in (1, 8):
            generator = torch.Generator().manual_seed(batch)
            samples = int(seconds * SAMPLING_RATE)
            audio = torch.randn(batch, samples, generator=generator)
            mask = torch.ones(batch, samples, dtype=torch.long)
            if batch > 1:
                mask[1::2, samples * 3 // 4 :] = 0
            settings = {"num_beams": beams, "min_new_tokens": tokens, "max_new_tokens": tokens, "max_length": None}

            def run(model, audio=audio, mask=mask, settings=settings):
                with torch.inference_mode():
                    return model.generate(audio, attention_mask=mask, **settings)

            (theirs, before), (its, after) = (counted(model, partial(run, model)) for model in (native, ours))
            label = f"{'greedy' if beams == 1 else f'beam {beams}'}, batch {batch}"
            calls = {"native": lambda: run(native), "ours": lambda: run(ours)}
            median, decoding = interleaved(calls, rounds, label, encoders)
            ratio, of_decoding = median["native"] / median["ours"], decoding["native"] / decoding["ours"]
            verdict = "same tokens" if torch.equal(its, theirs) else "TOKENS DIFFER"
            print(
                f"{label:22}{median['native']:10.3f}{median['ours']:10.3f}{ratio:8.2f}{of_decoding:10.2f}"
                f"   {before} -> {after}   {verdict}"
            )


class _TimedProducts(TorchDispatchMode):
    """Adds up the time inside matrix products of one step."""

    PRODUCTS = (
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "linear",
        "_linear_pointwise",
        "_scaled_dot_product_flash_attention_for_cpu",
    )

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.PRODUCTS:
            self.seconds += time.perf_counter() - start
        return result


def share(encoder: str, seconds: float, tokens: int, rounds: int) -> None:
    """Print the share of a greedy decode step that is not the decoder's own matrix products and attention."""
    ours = build(encoder)
    audio = torch.randn(1, int(seconds * SAMPLING_RATE))
    with torch.inference_mode():
        encoded = ours.get_encoder()(input_values=audio)
        settings = {"min_new_tokens": tokens, "max_new_tokens": tokens, "max_length": None}

        def run():
            return ours.generate(encoder_outputs=encoded, **settings)

        run()
        steps = statistics.median(_seconds(run) for _ in range(rounds)) / tokens
        with _TimedProducts() as products:
            run()
    spent = products.seconds / tokens
    print(f"\ndecode step behind wav2vec2-{encoder}: {steps * 1e3:.1f} ms, of which {spent * 1e3:.1f} ms in matrix")
    print(f"products and attention; {max(0.0, 1 - spent / steps):.0%} is all else (norms, cache, sampling, Python)")


LETTERS = " 'abcdefghijklmnopqrstuvwxyz"


class _Words:
    """In place of a tokenizer: words of random letters, two in three behind a space, as long as BERT's."""

    all_special_ids, unk_token_id = [0, 100, 101, 102], 100

    def __init__(self, size: int) -> None:
        generator = random.Random(0)
        lengths = generator.choices(range(1, 12), weights=[1, 2, 4, 6, 7, 7, 6, 4, 3, 2, 1], k=size)
        words = ["".join(generator.choices(LETTERS[2:], k=length)) for length in lengths]
        self.pieces = [word if place % 3 == 2 else f" {word}" for place, word in enumerate(words)]

    def __len__(self) -> int:
        return len(self.pieces)

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return "".join(self.pieces[token_id] for token_id in ids)

    def batch_decode(self, rows: Sequence[Sequence[int]], **_: object) -> list[str]:
        return [self.decode(row) for row in rows]


def ctc_share(encoder: str, seconds: float, tokens: int, rounds: int) -> None:
    """Print what joint decoding costs on top of beam 5, by a CTC head of the decoder's tokens and one of letters."""
    threads = torch.get_num_threads()
    print(f"\nwav2vec2-{encoder} + bert-base, beam 5, {seconds:g} s of audio, {tokens} tokens, {threads} threads")
    print(f"{'':22}{'beam 5 s':>10}{'joint s':>10}{'ratio':>8}")
    for name, letters in (("tokens", None), ("letters", LETTERS)):
        ours = build(encoder, ctc_weight=0.3, ctc_characters=letters)
        words = _Words(ours.config.vocab_size)
        for batch in (1, 8):
            audio = torch.randn(batch, int(seconds * SAMPLING_RATE), generator=torch.Generator().manual_seed(batch))
            settings = {"num_beams": 5, "min_new_tokens": tokens, "max_new_tokens": tokens, "max_length": None}

            def run(weight, audio=audio, settings=settings, ours=ours, words=words):
                with torch.inference_mode():
                    return ours.generate(audio, ctc_weight=weight, tokenizer=words, **settings)

            run(0.3)
            label = f"{name}, batch {batch}"
            median, _ = interleaved({"alone": lambda: run(0.0), "joint": lambda: run(0.3)}, rounds, label)
            ratio = median["joint"] / median["alone"]
            print(f"{label:22}{median['alone']:10.3f}{median['joint']:10.3f}{ratio:8.2f}")


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs",
        nargs="+",
        choices=list(ENCODERS),
        help="by default base and large; base alone for the options below",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the audio")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each class")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 5], help="searches to compare; 1 is greedy")
    parser.add_argument("--share", action="store_true", help="only print what a decode step is made of")
    parser.add_argument("--ctc", action="store_true", help="only print what joint decoding costs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    part = share if args.share else ctc_share if args.ctc else None
    for encoder in args.pairs or (["base"] if part else ["base", "large"]):
        (part or partial(compare, searches=args.beams))(encoder, args.seconds, args.tokens, args.rounds)


if __name__ == "__main__":
    main()
