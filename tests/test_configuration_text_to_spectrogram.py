"""The configuration of text to speech: what is refused, what is kept, what is read of SpeechT5's."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny_speech_synthesizers import HIFIGAN_SIZES, TTS_SIZES, tiny_tts_config
from transformers import AutoConfig, BertConfig, SpeechT5Config, SpeechT5FeatureExtractor, SpeechT5HifiGanConfig

from speechgraft import TextToSpectrogramConfig

BERT = {
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 31,
    "pad_token_id": 3,
}


def test_a_mistyped_field_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ValueError, match=r"'reduction_facotr' \(did you mean 'reduction_factor'\?\)"):
        TextToSpectrogramConfig(reduction_facotr=1)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"reduction_factor": 0}, "reduction_factor must be at least 1, got 0"),
        ({"hidden_size": 18}, "hidden_size 18 is no multiple of decoder_attention_heads 4"),
        ({"hidden_size": 15, "encoder_attention_heads": 1, "decoder_attention_heads": 1}, "must be even"),
        ({"speech_decoder_postnet_kernel": 4}, "must be odd"),
        ({"speech_decoder_prenet_dropout": 1.0}, "from 0 to below 1, got 1.0"),
        ({"hidden_dropout": -0.1}, "hidden_dropout is a probability"),
        ({"scheduled_sampling_rate": 1.5}, "scheduled_sampling_rate is a share from 0 to 1, got 1.5"),
        ({"guided_attention_loss_heads": 2}, "or -1 for all heads, got 2"),
        ({"guided_attention_loss_heads": []}, "names heads from 0 to 3"),
        ({"guided_attention_loss_heads": [0, 4]}, "names heads from 0 to 3"),
        ({"guided_attention_loss_sigma": 0}, "must be above 0"),
        ({"speaker_embedding_dim": -1}, "speaker_embedding_dim must be at least 0"),
        ({"fmax": 9000}, "fmax 9000 Hz must lie in this order between 0 and half of sampling_rate 16000"),
        ({"win_length": 2048}, "win_length 2048 exceeds n_fft 1024"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_values_out_of_range_are_refused(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        tiny_tts_config(**fields)


def test_what_is_saved_is_what_was_there(tmp_path):
    config = tiny_tts_config(
        encoder=BertConfig(**BERT),
        vocoder=SpeechT5HifiGanConfig(**HIFIGAN_SIZES),
        guided_attention_loss_heads=[0, 2],
        newly_initialized=["decoder"],
    )
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(read, TextToSpectrogramConfig) and read.model_type == "text_to_spectrogram"
    before, after = config.to_dict(), read.to_dict()
    for key in ("transformers_version", "_name_or_path"):
        before.pop(key, None)
        after.pop(key, None)
    assert before == after
    assert isinstance(read.encoder, BertConfig) and isinstance(read.vocoder, SpeechT5HifiGanConfig)


def test_parts_that_are_not_asked_for_stay_absent(tmp_path):
    tiny_tts_config().save_pretrained(tmp_path)
    read = TextToSpectrogramConfig.from_pretrained(tmp_path)
    assert read.encoder is None and read.vocoder is None


def test_the_vocabulary_and_its_padding_are_those_of_the_pretrained_encoder():
    config = tiny_tts_config(encoder=BERT | {"model_type": "bert"})
    assert (config.vocab_size, config.pad_token_id) == (31, 3)


def test_generic_code_counts_the_layers_and_heads_of_the_decoder():
    config = tiny_tts_config(encoder_layers=3, decoder_layers=1)
    assert (config.num_hidden_layers, config.num_attention_heads) == (1, 4)
    assert config.get_text_config(decoder=True).num_hidden_layers == 1


def test_all_heads_are_all_heads():
    assert tiny_tts_config().guided_heads == [0, 1, 2, 3]
    assert tiny_tts_config(guided_attention_loss_heads=[3, 1]).guided_heads == [3, 1]


def test_a_native_configuration_reads_as_ours(tmp_path):
    native = SpeechT5Config(**TTS_SIZES, reduction_factor=3, guided_attention_loss_num_heads=1, hidden_dropout=0.25)
    native.save_pretrained(tmp_path)
    config = TextToSpectrogramConfig.from_pretrained(tmp_path)
    assert config.model_type == "text_to_spectrogram"
    for name in (*TTS_SIZES, "reduction_factor", "hidden_dropout", "pad_token_id", "eos_token_id", "layer_norm_eps"):
        assert getattr(config, name) == getattr(native, name), name
    assert config.guided_attention_loss_heads == [0] and config.guided_attention_loss_scale == 10.0
    assert not hasattr(config, "encoder_layerdrop"), "which could drop every layer"


def test_a_configuration_can_be_written_as_native_and_read_again(tmp_path):
    config = tiny_tts_config(guided_attention_loss_heads=[0, 1], guided_attention_loss_scale=2)
    config.to_native().save_pretrained(tmp_path)
    read = TextToSpectrogramConfig.from_pretrained(tmp_path).to_dict()
    expected = config.to_dict()
    assert {name for name in expected if read[name] != expected[name]} <= {"transformers_version", "_name_or_path"}


def test_spectrograms_are_by_default_those_of_the_native_feature_extractor():
    extractor, config = SpeechT5FeatureExtractor(), TextToSpectrogramConfig()
    per_ms = extractor.sampling_rate // 1000
    assert config.sampling_rate == extractor.sampling_rate
    assert config.hop_length == extractor.hop_length * per_ms and config.win_length == extractor.win_length * per_ms
    for name in ("num_mel_bins", "fmin", "fmax", "mel_floor"):
        assert getattr(config, name) == getattr(extractor, name)
