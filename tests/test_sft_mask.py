"""Only what the assistant says counts, whatever the template, and canaries get another's words."""

from pathlib import Path

import numpy as np
import pytest
from sft_runs import CHAT, MARKED, rows, tokenizer

from gradmimic.data.instructions import Instruction, Message, as_instruction
from gradmimic.data.instructions.reasons import ALL_CUT, BAD_TEMPLATE
from gradmimic.errors import ConfigError
from gradmimic.run.sft.batches import SftUnits
from gradmimic.run.sft.encode import Encoder
from gradmimic.run.sft.samples import Collected
from gradmimic.run.sft.swapped import swapped

TALK = Instruction(
    "0",
    (
        Message("system", "It is."),
        Message("user", "What is five?"),
        Message("assistant", "It is  five, and not six."),
        Message("user", "The sky? 🙂"),
        Message("assistant", " Light scatters. 🙂"),
    ),
)
# as some reasoning models' are: earlier thoughts are dropped, the last turn gets an empty one
THINKING = (
    "{% for turn in messages %}<|{{ turn.role }}|>"
    "{% if turn.role == 'assistant' and loop.last %}<s>{% endif %}{{ turn.content | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# as one of which the prompt for an answer opens a thought that no answer in the data has
OPENED = CHAT.replace("<|assistant|>{% endif %}", "<|assistant|><s>{% endif %}")


def counted_text(words, sample, max_length=256):
    """Return the runs of tokens that count, as text."""
    made = Encoder(words, max_length)(sample)
    runs, last = [], False
    for own, counts in zip(made.ids, made.counted, strict=True):
        if counts and not last:
            runs.append([])
        if counts:
            runs[-1].append(own)
        last = counts
    return [words.decode(run) for run in runs], words.decode(made.ids)


@pytest.mark.parametrize("template", [CHAT, MARKED], ids=["by turns", "marked by the template"])
def test_in_a_conversation_every_response_counts_with_the_end_of_its_turn(template):
    said, text = counted_text(tokenizer(template), TALK)
    assert said == ["It is  five, and not six.<|end|>", " Light scatters. 🙂<|end|>"]
    turns = "<|system|>It is.<|end|>\n<|user|>What is five?<|end|>\n"
    assert text.startswith(turns + "<|assistant|>It is  five")


def test_a_template_may_drop_the_thoughts_of_earlier_turns():
    said, _ = counted_text(tokenizer(THINKING), TALK)
    assert said == ["It is  five, and not six.<|end|>", "<s>Light scatters. 🙂<|end|>"]


def test_a_template_may_open_a_thought_that_the_data_do_not_have():
    said, _ = counted_text(tokenizer(OPENED), TALK)
    assert said == ["It is  five, and not six.<|end|>", " Light scatters. 🙂<|end|>"]


def test_only_the_last_turn_may_end_the_text():
    said, _ = counted_text(
        tokenizer(CHAT + "{% if not add_generation_prompt %}<s>{% endif %}"), TALK
    )
    assert said == ["It is  five, and not six.<|end|>", " Light scatters. 🙂<|end|>\n<s>"]


@pytest.mark.slow
def test_real_templates_show_every_response_or_are_refused():
    trl = pytest.importorskip("trl", reason="needs the extra 'trl', which brings templates")
    files = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    if not files:
        pytest.skip("this release of trl keeps its templates elsewhere")
    words, found = tokenizer(), {}
    words.add_special_tokens({"bos_token": "<s>"})
    talk = Instruction("0", TALK.messages[1:])  # some know no system
    for file in files:
        words.chat_template = file.read_text(encoding="utf-8")
        encoded = Encoder(words, 4096)(talk)
        if encoded == BAD_TEMPLATE:
            found[file.stem] = None
            continue
        found[file.stem], _ = counted_text(words, talk, 4096)
        first, last = found[file.stem]
        assert "It is  five, and not six." in first, file.stem
        assert "Light scatters. 🙂" in last, file.stem
        assert "What is five?" not in first, file.stem
        assert "The sky" not in last, file.stem
    refused = {name.removesuffix("_training") for name, said in found.items() if said is None}
    assert refused <= {"idefics3", "llava_next", "smolvlm"}  # they show pictures beside texts
    if "llama3" in found:
        assert found["llama3"] == [
            "It is  five, and not six.<|eot_id|>",
            "Light scatters. 🙂<|eot_id|>",
        ]


def test_a_response_that_repeats_its_prompt_is_found_where_it_is_said():
    turns = (Message("user", "six"), Message("assistant", "six"))
    made = Encoder(tokenizer(), 64)(Instruction("0", turns))
    said, _ = counted_text(tokenizer(), Instruction("0", turns))
    assert said == ["six<|end|>"]
    assert made.counted[-3:] != [False] * 3
    assert not any(made.counted[: len(made.ids) // 2])


def test_without_a_template_turns_stand_on_lines_of_their_own():
    words = tokenizer(None)
    encode = Encoder(words, 256)
    encode(as_instruction({"prompt": "2 + 2 =", "completion": " 4"}, "0"))
    assert not encode.missed  # these two need none
    encode(TALK)
    assert encode.missed
    said, text = counted_text(words, TALK)
    assert said == ["It is  five, and not six.<|end|>", " Light scatters. 🙂<|end|>"]
    assert text == (
        "It is.\nWhat is five?\nIt is  five, and not six.<|end|>\n"
        "The sky? 🙂\n Light scatters. 🙂<|end|>"
    )


def test_a_prompt_and_its_completion_are_put_together_as_they_are():
    sample = as_instruction({"prompt": "2 + 2 =", "completion": " 4"}, "0")
    said, text = counted_text(tokenizer(), sample)
    assert (said, text) == ([" 4<|end|>"], "2 + 2 = 4<|end|>")


def test_the_tokens_are_those_of_the_template():
    words = tokenizer()
    turns = [{"role": turn.role, "content": turn.content} for turn in TALK.messages]
    expected = words.apply_chat_template(turns)["input_ids"]
    assert Encoder(words, 256)(TALK).ids == expected


def test_what_is_too_long_is_cut_at_its_end():
    words = tokenizer()
    whole = Encoder(words, 256)(TALK)
    first = whole.counted.index(True)
    made = Encoder(words, first + 2)(TALK)
    assert made.ids == whole.ids[: first + 2]
    assert (made.counted.count(True), made.cut, whole.cut) == (2, True, False)
    assert Encoder(words, first)(TALK) == ALL_CUT


def test_nothing_predicts_the_first_token():
    words = tokenizer("{% for turn in messages %}{{ turn.content }}{% endfor %}")
    turns = (Message("user", "six"), Message("assistant", "five"))
    assert not Encoder(words, 64)(Instruction("0", turns)).counted[0]


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system here') }}",
        "{% for turn in messages %}{{ turn.content | upper }}{% endfor %}",
    ],
    ids=["it refuses", "it says something else"],
)
def test_what_a_template_cannot_show_is_left_out(template):
    assert Encoder(tokenizer(template), 64)(TALK) == BAD_TEMPLATE


def test_a_slow_tokenizer_is_refused():
    words = tokenizer()
    slow = type("Slow", (), {"is_fast": False, "eos_token": words.eos_token})()
    with pytest.raises(ConfigError, match=r"Slow is a slow one.*tokenizer\.json"):
        Encoder(slow, 64)


# Canaries


def sequences(several):
    encode, found = Encoder(tokenizer(), 64), Collected()
    for place, row in enumerate(several):
        found.add(str(place), encode(as_instruction(row, str(place))))
    return found.done()


def test_a_canary_has_its_own_prompt_and_the_response_of_another():
    samples = sequences(rows(12))
    canaries = swapped(samples, 0.5, 0, 64)
    assert len(canaries) == 6
    assert len(set(canaries.ids)) == 6
    responses = [tokens[counted].tolist() for tokens, counted in map(samples.of, range(12))]
    for place, sample_id in enumerate(canaries.ids):
        tokens, counted = canaries.of(place)
        own, real = samples.of(int(sample_id))
        assert tokens[~counted].tolist() == own[~real].tolist()
        assert tokens[counted].tolist() in responses
        assert tokens[counted].tolist() != responses[int(sample_id)]


def test_the_seed_decides_which_samples_serve():
    samples = sequences(rows(12))
    first, again, other = (swapped(samples, 0.5, seed, 64) for seed in (0, 0, 1))
    assert first.digest() == again.digest() != other.digest()


def test_no_canary_says_what_its_sample_says():
    several = rows(6)
    for row in several[:5]:
        row["output"] = "It is."
    canaries = swapped(sequences(several), 1.0, 0, 64)
    sixth = sequences(several).of(5)
    for place, sample_id in enumerate(canaries.ids):
        tokens, counted = canaries.of(place)
        same = tokens[counted].tolist() == sixth[0][sixth[1]].tolist()
        assert same == (sample_id != "5")
    alike = [dict(row, output="It is.") for row in several]
    assert len(swapped(sequences(alike), 1.0, 0, 64)) == 0


def test_all_responses_of_a_conversation_are_exchanged():
    encode, found = Encoder(tokenizer(), 256), Collected()
    found.add("0", encode(TALK))
    found.add("1", encode(as_instruction({"question": "The sky?", "answer": "blue"}, "1")))
    canaries = swapped(found.done(), 1.0, 0, 256)
    tokens, counted = canaries.of(canaries.ids.index("0"))
    words = tokenizer()
    assert words.decode(tokens[counted]) == "blue<|end|>blue<|end|>"
    assert "The sky? 🙂" in words.decode(tokens)


def test_a_canary_is_cut_where_samples_are():
    samples = sequences(rows(12))
    longest = int(samples.lengths.max()) - 1
    canaries = swapped(samples, 1.0, 0, longest)
    assert canaries.lengths.max() <= longest


# Batches


def test_batches_hold_samples_of_one_length_the_longest_first():
    import torch

    samples = sequences(rows(10))
    canaries = swapped(samples, 0.5, 0, 64)
    units = SftUnits(samples, canaries, 4, 0, torch.device("cpu"))
    batches = [units.batch(number) for number in range(len(units))]
    assert [len(own.ids) for own in batches] == [4, 4, 2]
    assert [len(own.canary_ids) for own in batches] == [2, 2, 1]
    lengths = [int(own.attention_mask[: len(own.ids)].sum(1).max()) for own in batches]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(name for own in batches for name in own.ids) == sorted(samples.ids)
    for own in batches:
        assert len(own.input_ids) == len(own.ids) + len(own.canary_ids)
        for row, name in enumerate(own.ids):
            tokens, counted = samples.of(int(name))
            n = len(tokens)
            assert own.input_ids[row, :n].tolist() == tokens.tolist()
            assert own.attention_mask[row].tolist() == [1] * n + [0] * (own.input_ids.shape[1] - n)
            expected = np.where(counted, tokens, -100)
            assert own.labels[row, :n].tolist() == expected.tolist()
            assert (own.labels[row, n:] == -100).all()
