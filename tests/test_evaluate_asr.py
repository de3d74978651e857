"""`speechgraft evaluate-asr`: the numbers are those of an independent count, and nothing bad is counted."""

import csv
import json
from pathlib import Path

import jiwer
import pytest
from tiny_recognizers import TRANSCRIPTS, save_bad_clips, save_clips, save_native, save_recognizer

from speechgraft.modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel
from speechgraft.modeling.ngram_language_model import NgramLanguageModel
from speechgraft.processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor
from speechgraft.scripts.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_recognizer(tmp_path_factory.mktemp("recognizer") / "model"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return save_clips(tmp_path_factory.mktemp("audio") / "clips", 5)


def evaluate(*words: object) -> int:
    return main(["evaluate-asr", "--max-new-tokens", "8", *map(str, words)])


def hypotheses(model: str, clips: Path, num_beams: int) -> list[str]:
    processor, network = (
        SpeechSeq2SeqProcessor.from_pretrained(model),
        SpeechSeq2SeqModel.from_pretrained(model).eval(),
    )
    texts = []
    for path in sorted(clips.glob("*.wav")):
        inputs = processor(audio=str(path), return_tensors="pt")
        sequences = network.generate(**inputs, max_length=9, num_beams=num_beams)
        texts += processor.batch_decode(sequences, skip_special_tokens=True)
    return texts


@pytest.mark.parametrize("more", [[], ["--streaming"], ["--batch-size", "2"]])
def test_rates_are_those_that_jiwer_counts_for_greedy_and_for_beams(more, model, clips, tmp_path, capsys):
    output = tmp_path / "results.json"
    assert evaluate("--data", clips, "--model", model, "--num-beams", 1, 3, "--output", output, *more) == 0
    document = json.loads(output.read_text())
    references = TRANSCRIPTS[:5]
    for result, num_beams in zip(document["results"], (1, 3), strict=True):
        heard = hypotheses(model, clips, num_beams)
        assert result["num_beams"] == num_beams and result["utterances"] == 5
        assert result["wer"] == pytest.approx(jiwer.wer(references, heard))
        assert result["cer"] == pytest.approx(jiwer.cer(references, heard))
        rows = [row for row in document["utterances"] if row["num_beams"] == num_beams]
        assert [row["hypothesis"] for row in rows] == heard and [row["reference"] for row in rows] == references
        counted = jiwer.process_words(references, heard)
        assert (counted.substitutions, counted.deletions, counted.insertions) == (
            result["substitutions"],
            result["deletions"],
            result["insertions"],
        )
        assert result["rtfx"] > 0 and result["audio_s"] == pytest.approx(sum(0.3 + 0.1 * i for i in range(5)))
        assert f"{result['wer']:.2%}" in capsys.readouterr().out or num_beams == 3


def test_the_worst_utterances_are_shown_with_what_was_said_and_heard(model, clips, capsys):
    assert evaluate("--data", clips, "--model", model, "--worst", 2) == 0
    table = capsys.readouterr().out.split("most errors, greedy\n")[1].splitlines()
    assert len(table) == 1 + 2 * 3
    errors = [int(line.split()[0]) for line in table[1::3]]
    assert errors == sorted(errors, reverse=True) and str(clips) in table[1]
    assert table[2].split("said:")[1].strip() in TRANSCRIPTS


def test_a_csv_has_a_line_for_each_utterance_and_search(model, clips, tmp_path):
    output = tmp_path / "results.csv"
    assert evaluate("--data", clips, "--model", model, "--num-beams", 1, 2, "--output", output) == 0
    rows = list(csv.DictReader(output.open()))
    assert [row["num_beams"] for row in rows] == ["1"] * 5 + ["2"] * 5
    assert {Path(row["file"]).name for row in rows} == {f"clip{index}.wav" for index in range(5)}


def test_the_normalizer_decides_what_is_an_error(tmp_path, capsys):
    model = save_native(tmp_path / "native")
    clips = save_clips(tmp_path / "clips", 1)
    assert evaluate("--data", clips, "--model", model, "--output", tmp_path / "heard.json") == 0
    heard = json.loads((tmp_path / "heard.json").read_text())["utterances"][0]["hypothesis"]
    (clips / "metadata.csv").write_text(f"file_name,text\nclip0.wav,{heard.upper()}!\n")
    rates = {}
    for normalizer in ("basic", "none"):
        assert (
            evaluate("--data", clips, "--model", model, "--normalizer", normalizer, "--output", tmp_path / "r.json")
            == 0
        )
        rates[normalizer] = json.loads((tmp_path / "r.json").read_text())["results"][0]["wer"]
    assert rates["basic"] == 0 and rates["none"] == 1


def test_what_cannot_be_used_is_told_once_and_does_not_count(model, tmp_path, capsys):
    bad = save_bad_clips(tmp_path / "bad")
    clips = save_clips(tmp_path / "clips", 2)
    lines = [*(clips / "metadata.csv").read_text().splitlines(), "clip1.wav,"]
    lines += [f"{path},hello" for path in bad.values()]
    (clips / "metadata.csv").write_text("\n".join(lines) + "\n")
    output = tmp_path / "results.json"
    assert evaluate("--data", clips, "--model", model, "--num-beams", 1, 2, "--output", output) == 1
    document = json.loads(output.read_text())
    assert [result["utterances"] for result in document["results"]] == [2, 2]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    assert len(told) == len(bad) + 1 == len(document["skipped"])
    for message in (*bad, "empty transcript"):
        assert sum(message in line for line in told) == 1, message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "{tmp}/none"], "{tmp}/none: no such file or folder"),
        (["--data", "{clips}", "--text-column", "words"], "no text column (looked for words)"),
        (
            ["--data", "{clips}", "--output", "{tmp}/results.txt"],
            "--output {tmp}/results.txt: the name ends in .json or .csv",
        ),
        (["--data", "{clips}", "--output", "{tmp}/none/results.csv"], "no such folder {tmp}/none"),
        (["--data", "{clips}", "--model", "{tmp}/none"], "{tmp}/none: no such model folder"),
        (["--data", "{broken}"], "{broken} line 2: not JSON"),
        (["--data", "{silent}"], "{silent}: none of the recordings can be used"),
        (
            ["--data", "{clips}", "--language-model-weight", "0.4"],
            "--language-model-weight is without effect: give --language-model too",
        ),
        (["--data", "{clips}", "--hot-word-weight", "2"], "--hot-word-weight is without effect: give --hot-words too"),
    ],
)
def test_a_usage_mistake_is_one_line_with_status_2(words, message, model, clips, tmp_path, capsys):
    places = {"tmp": tmp_path, "clips": clips, "broken": tmp_path / "broken.jsonl", "silent": tmp_path / "silent.csv"}
    places["broken"].write_text('{"audio": "a.wav", "text": "a"}\n{"audio":\n')
    places["silent"].write_text("audio,text\nmissing.wav,hello\n")
    assert evaluate("--model", model, *(word.format(**places) for word in words)) == 2
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("speechgraft evaluate-asr: ")]
    assert message.format(**places) in line and "Traceback" not in err


def test_a_language_model_and_hot_words_change_what_is_heard(model, clips, tmp_path, capsys):
    def heard(*words: object) -> list[str]:
        output = tmp_path / "results.json"
        assert evaluate("--data", clips, "--model", model, "--output", output, *words) == 0
        return [row["hypothesis"] for row in json.loads(output.read_text())["utterances"]]

    plain, (word, *_) = heard(), TRANSCRIPTS[0].split()
    text, arpa = tmp_path / "texts.txt", tmp_path / "words.arpa"
    text.write_text(f"{word} {word}\n" * 20)
    NgramLanguageModel.from_texts([[word, word]] * 20, 2).save_arpa(arpa)
    assert heard("--language-model", text, "--language-model-weight", 50) == [f"{word} {word}"] * len(plain) != plain
    assert heard("--language-model", arpa, "--language-model-weight", 50, "--num-beams", 8)[0].startswith(word)
    assert all(word in one for one in heard("--hot-words", word, "--hot-word-weight", 500))


def test_a_decoder_that_fills_in_is_measured_by_what_it_fills_in(clips, tmp_path, capsys):
    filling = str(save_recognizer(tmp_path / "filling", ctc_weight=0.3, mask_token_id=1))
    processor = SpeechSeq2SeqProcessor.from_pretrained(filling)
    network = SpeechSeq2SeqModel.from_pretrained(filling).eval()
    output = tmp_path / "results.json"
    for options, arguments in (([], {}), (["--passes", 1, "--mask-threshold", 1], {"passes": 1, "threshold": 1.0})):
        heard = []
        for path in sorted(clips.glob("*.wav")):
            ids = network.generate_masked(
                **processor(audio=str(path), return_tensors="pt"), max_new_tokens=8, **arguments
            )
            heard += processor.batch_decode(ids, skip_special_tokens=True)
        assert evaluate("--data", clips, "--model", filling, "--output", output, *options) == 0
        document = json.loads(output.read_text())
        assert [row["hypothesis"] for row in document["utterances"]] == heard
        assert document["results"][0]["wer"] == pytest.approx(jiwer.wer(TRANSCRIPTS[:5], heard))
        assert document["results"][0]["rtfx"] > 0
    for refused in (["--num-beams", 1, 5], ["--ctc-weight", 0.3], ["--hot-words", "a"], ["--language-model", "a"]):
        capsys.readouterr()
        assert evaluate("--data", clips, "--model", filling, *refused) == 2
        assert f"{refused[0]}: the model's decoder fills in masked tokens" in capsys.readouterr().err


@pytest.mark.parametrize("content, fault", [(None, "no such model folder"), ("\n", "no text in this file")])
def test_a_language_model_that_is_not_there_is_named(content, fault, model, clips, tmp_path, capsys):
    text = tmp_path / "texts.txt"
    if content is not None:
        text.write_text(content)
    assert evaluate("--data", clips, "--model", model, "--language-model", text) == 2
    assert str(text) in (told := capsys.readouterr().err) and fault in told
