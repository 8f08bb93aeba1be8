"""Trains examples/checkpoints/pico-chat: `python examples/chat/train.py`. A CPU and torch are enough.

Equal machines and versions give equal bytes: one thread, fixed seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from model import EPS, THETA, Llama, Muon, Shape
from paraphrase import HERE, Message, corpus, read_facts
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

SEED = 1
CONVERSATIONS = 75_000
STEP_TOKENS = 4096
LENGTHS = ((256, 0.92), (1024, 0.08))
"""Tokens of a row, and the share of the text with it: long rows cost more, and teach the later positions."""
RATE_OF_MATRICES, RATE_OF_OTHERS, DECAY = 0.02, 3e-3, 0.1
WARM_UP = 50
"""Steps."""
QUESTION_WEIGHT = 0.1
"""Of a question's token in the loss; an answer's has 1, roles have 0."""
UNDERSTANDING = 0.5
"""Weight of the classifier's loss."""
HIDDEN = 0.15
"""Share of a question's tokens that are hidden, anew in each step: so that no answer hangs on one word."""
VOCABULARY_FROM = 8000
"""Conversations that the tokenizer is made from."""
SPECIAL = PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
"""Their ids are 0, 1 and 2."""
TEMPLATE = """\
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- set content = ' ' + (message['content'] | lower | trim) %}
    {%- else %}
        {%- set content = message['content'] %}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""A question is lower case after a blank, so that a word is the same tokens wherever it stands: a model this small
does not learn that by itself."""


def make_tokenizer(conversations: Sequence[Sequence[Message]], vocabulary: int) -> Tokenizer:
    """A byte-level BPE: it has a token for every byte, so it encodes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((rendered(message) for one in conversations for message in one), trainer)
    return tokenizer


def rendered(message: Message) -> str:
    """A message's content as the template has it."""
    return f" {message.content.lower().strip()}" if message.role == "user" else message.content


@dataclass(frozen=True)
class Text:
    """What is trained on: arrays [tokens], or cut into rows [rows, length]."""

    ids: Tensor
    following: Tensor
    weights: Tensor
    """Of the following token in the loss."""
    answers: Tensor
    """Before the first token of an answer, which of all answers it is; else -1."""

    def cut(self, first: int, length: int) -> Text:
        """The rows of a step."""
        return Text(*(one[first : first + STEP_TOKENS].view(-1, length) for one in vars(self).values()))


def encode(tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], answers: Sequence[str] = ()) -> Text:
    """All conversations in a row, as the chat template has them."""
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    (line_end,) = tokenizer.encode("\n").ids
    heads = {role: [start, *tokenizer.encode(role).ids, line_end] for role in ("system", "user", "assistant")}
    numbers = {answer: number for number, answer in enumerate(answers)}
    messages = [message for one in conversations for message in one]
    ids, weights, classes = list[int](), list[float](), list[int]()
    for message, content in zip(messages, tokenizer.encode_batch(list(map(rendered, messages))), strict=True):
        head, body = heads[message.role], [*content.ids, end]
        answer = message.role == "assistant"
        ids += [*head, *body, line_end]
        weights += [*[0.0] * len(head), *[1.0 if answer else QUESTION_WEIGHT] * len(body), 0.0]
        classes += [*[-1] * (len(head) - 1), numbers.get(message.content, -1) if answer else -1, *[-1] * len(body), -1]
    return Text(torch.tensor(ids), torch.tensor(ids[1:]), torch.tensor(weights[1:]), torch.tensor(classes))


def rows(text: Text) -> list[Text]:
    """The text in steps."""
    found, begin = [], 0.0
    for length, share in LENGTHS:
        first, last = (int(part * len(text.following)) for part in (begin, begin + share))
        found += [text.cut(at, length) for at in range(first, last - STEP_TOKENS + 1, STEP_TOKENS)]
        begin += share
    return found


def train(model: Llama, hidden: int, answers: int, steps: Sequence[Text]) -> None:
    """One pass over the data.

    A classifier, which is thrown away, must tell at the beginning of an answer which one it is: so that a question is
    understood before its answer is spelled.
    """
    classifier = nn.Linear(hidden, answers)
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.dim() == 2 and "embed" not in name]
    others = [weight for name, weight in named if weight.dim() != 2 or "embed" in name] + list(classifier.parameters())
    optimizers = (
        Muon(matrices, RATE_OF_MATRICES, DECAY),
        torch.optim.AdamW(others, RATE_OF_OTHERS, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: min((step + 1) / WARM_UP, 1.0) * (1.02 - step / len(steps)))
        for one in optimizers
    ]
    for number, text in enumerate(steps):
        counted, begins = text.weights > 0, text.answers >= 0
        asked = F.pad(text.weights == QUESTION_WEIGHT, (1, -1)) & (text.ids >= len(SPECIAL))
        hidden_words = asked & (torch.rand(asked.shape) < HIDDEN)
        with torch.autocast("cpu", torch.bfloat16):
            states = model(text.ids.masked_fill(hidden_words, SPECIAL.index(PAD)))
            logits, classes = model.logits(states[counted]), classifier(states[begins])
        losses = F.cross_entropy(logits.float(), text.following[counted], reduction="none")
        spelled = (losses * text.weights[counted]).sum() / text.weights.sum()
        understood = F.cross_entropy(classes.float(), text.answers[begins])
        (spelled + UNDERSTANDING * understood).backward()
        torch.nn.utils.clip_grad_norm_([*(weight for _, weight in named), *classifier.parameters()], 1.0)
        for one in (*optimizers, *schedules):
            one.step()
        for one in optimizers:
            one.zero_grad()
        if number % 50 == 0:
            said = f"loss {spelled.item():.3f}, of the answer's choice {understood.item():.3f}"
            print(f"step {number} of {len(steps)}: {said}; {time.process_time():.0f} s", flush=True)


def write(folder: Path, model: Llama, tokenizer: Tokenizer, shape: Shape) -> None:
    """The checkpoint, as transformers would write it."""
    folder.mkdir(parents=True, exist_ok=True)
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    ends = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": pad}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocab,
        **ends,
    }
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "chat_template": TEMPLATE,
    }
    tokens |= {"model_max_length": shape.context, "clean_up_tokenization_spaces": False}
    for name, value in {"config": config, "generation_config": ends, "tokenizer_config": tokens}.items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    save_file(model.tensors(), folder / "model.safetensors", {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=HERE.parent / "checkpoints" / "pico-chat")
    parser.add_argument("--conversations", type=int, default=CONVERSATIONS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    shape = Shape()
    conversations = list(corpus(SEED, given.conversations))
    tokenizer = make_tokenizer(conversations[:VOCABULARY_FROM], shape.vocab)
    answers = [fact.answer for fact in read_facts()]
    text = encode(tokenizer, conversations, answers)
    model = Llama(shape)
    count = sum(weight.numel() for weight in model.parameters())
    print(f"{count:,} parameters, {len(conversations):,} conversations, {len(text.ids):,} tokens", flush=True)
    train(model, shape.hidden, len(answers), rows(text))
    write(given.output, model, tokenizer, shape)
    print(f"{given.output}: {time.process_time():.0f} s of processor time")


if __name__ == "__main__":
    main()
