"""Tokenizer, chat template and processor of a published InternVL2, as transformers' own InternVLProcessor wants them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from checkpoints.internvl.sentencepiece import read_sentencepiece
from modeling.user_error import UserError

IMAGE = "<IMG_CONTEXT>"
VIDEO = "<quad>"
"""Stands for a video in a text, until its frames take its place: a token that no chat has, for the vocabulary is full."""
NAMED_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": IMAGE,
    "video_token": VIDEO,
}
SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
"""What InternVL2 was trained and evaluated with wherever nothing else is said."""


@dataclass(frozen=True)
class Chat:
    """How a conversation is written: what opens a turn, by role, and the token that ends it. Nothing stands between turns."""

    openings: dict[str, str]
    end: str

    def tokens(self) -> list[str]:
        """Those that openings and ends are made of."""
        return re.findall(r"<\|\w+\|>", "".join((*self.openings.values(), self.end)))

    def template(self) -> str:
        """In Jinja. A picture is its placeholder and a newline, where it stands in the content."""
        end, image, video = (json.dumps(text) for text in (self.end, f"{IMAGE}\n", f"{VIDEO}\n"))
        return (
            f"{{% set openings = {json.dumps(self.openings)} %}}"
            "{% if messages[0]['role'] != 'system' %}"
            f"{{{{ openings['system'] + {json.dumps(SYSTEM, ensure_ascii=False)} + {end} }}}}"
            "{% endif %}"
            "{% for message in messages %}{{ openings[message['role']] }}"
            "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
            f"{{% if part['type'] == 'image' %}}{{{{ {image} }}}}{{% elif part['type'] == 'video' %}}{{{{ {video} }}}}"
            "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
            "{% endfor %}{% endif %}"
            f"{{{{ {end} }}}}{{% endfor %}}"
            "{% if add_generation_prompt %}{{ openings['assistant'] }}{% endif %}"
        )


CHATS = {
    "internlm2-chat": Chat({role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")}, "<|im_end|>"),
    "phi3-chat": Chat({role: f"<|{role}|>\n" for role in ("system", "user", "assistant")}, "<|end|>"),
}


def read_tokenizer(source: Path, chat: Chat) -> PreTrainedTokenizerFast:
    """The tokenizer of a published folder: tokenizer.json where there is one, else tokenizer.model.

    Its end token is the one that ends a turn: what the model generates last.

    Raises:
        UserError: no readable tokenizer, one that lacks a token of the chat or of pictures, or whose added tokens stand at
            other ids than the folder's other files say.
    """
    values = read_json(source / "tokenizer_config.json")
    listed = _added_tokens(source, values)
    if (source / "tokenizer.json").is_file():
        try:
            tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{source / 'tokenizer.json'}: not a tokenizer ({error})") from None
        ends = {}  # as the file itself says
    elif (source / "tokenizer.model").is_file():
        tokenizer = read_sentencepiece(source / "tokenizer.model", listed, legacy=values.get("legacy") is not False)
        ends = {"add_bos_token": values.get("add_bos_token", True), "add_eos_token": values.get("add_eos_token", False)}
    else:
        raise UserError(f"{source}: neither tokenizer.json nor tokenizer.model")

    for index, token in listed.items():
        if tokenizer.token_to_id(token.content) != index:
            got = tokenizer.token_to_id(token.content)
            raise UserError(f"{source}: token {token.content!r}: got id {got}, the added tokens say {index}")
    for token in (*NAMED_TOKENS.values(), *chat.tokens()):
        if tokenizer.token_to_id(token) is None:
            raise UserError(f"{source}: the tokenizer has no token {token!r}")
    special = {name: _content(values[name]) for name in ("bos_token", "unk_token", "pad_token") if values.get(name)}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"pad_token": _content(values.get("eos_token") or chat.end)} | special | ends,
        eos_token=chat.end,
        model_max_length=values.get("model_max_length"),
        extra_special_tokens=NAMED_TOKENS,
    )


def write_processor(
    folder: Path, tokenizer: PreTrainedTokenizerFast, chat: Chat, *, tile: int, tile_tokens: int, tiles: tuple[int, int]
) -> None:
    """Writes tokenizer, chat template and processor_config.json.

    Args:
        tile: height and width of a tile, in pixels.
        tile_tokens: visual tokens of a tile.
        tiles: the least and the largest number of tiles that a picture is cut into.
    """
    tokenizer._set_processor_class("InternVLProcessor")
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(chat.template(), encoding="utf-8")
    pixels = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": tile, "width": tile},
        "resample": int(PILImageResampling.BICUBIC),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGENET_DEFAULT_MEAN,
        "image_std": IMAGENET_DEFAULT_STD,
    }
    cut = {"crop_to_patches": True, "min_patches": tiles[0], "max_patches": tiles[1]}
    values = {
        "processor_class": "InternVLProcessor",
        "image_seq_length": tile_tokens,
        "image_processor": {"image_processor_type": "GotOcr2ImageProcessor", **pixels, **cut},
        "video_processor": {"video_processor_type": "InternVLVideoProcessor", **pixels},
    }
    (folder / "processor_config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _added_tokens(source: Path, values: dict) -> dict[int, AddedToken]:
    """id: token, of tokenizer_config.json (`values`) and, for those it does not list, of added_tokens.json."""
    listed = {}
    try:
        for index, token in values.get("added_tokens_decoder", {}).items():
            flags = {flag: token.get(flag, False) for flag in ("lstrip", "rstrip", "single_word", "special")}
            listed[int(index)] = AddedToken(token["content"], normalized=False, **flags)
        if (source / "added_tokens.json").is_file():
            for content, index in read_json(source / "added_tokens.json").items():
                listed.setdefault(int(index), AddedToken(content, normalized=False, special=True))
    except (AttributeError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{source}: its added tokens are not readable ({error!r})") from None
    return listed


def _content(token: str | dict) -> str:
    return token["content"] if isinstance(token, dict) else token


def read_json(path: Path) -> dict:
    """Raises UserError where there is no JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: got {type(values).__name__}, expected a JSON object")
    return values
