"""Tokenizer, chat template and processor of a published InternVL2, in the form of transformers' InternVLProcessor."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from checkpoints.internvl.sentencepiece import read_sentencepiece
from modeling.json_file import read_json
from modeling.user_error import UserError

IMAGE = "<IMG_CONTEXT>"
VIDEO = "<quad>"
"""Stands for a video in a text until its frames take its place. No chat uses this token."""
# A new token cannot be added, because the model's vocabulary is full.
NAMED_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": IMAGE,
    "video_token": VIDEO,
}
SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
"""The system message that InternVL2 was trained and evaluated with."""


@dataclass(frozen=True)
class Chat:
    """How a conversation is written as text. Nothing stands between turns.

    Attributes:
        openings: role (system, user, assistant): the text that opens a turn of this role.
        end: the token that ends a turn.
    """

    openings: dict[str, str]
    end: str

    def tokens(self) -> list[str]:
        """Returns the special tokens that occur in openings and ends."""
        return re.findall(r"<\|\w+\|>", "".join((*self.openings.values(), self.end)))

    def template(self) -> str:
        """Returns the chat template, in Jinja. A picture becomes its placeholder and a newline, in its place."""
        end, image, video = (json.dumps(text) for text in (self.end, f"{IMAGE}\n", f"{VIDEO}\n"))
        return (
            f"{{% set openings = {json.dumps(self.openings)} %}}"
            "{% if messages[0]['role'] != 'system' %}"
            f"{{{{ openings['system'] + {json.dumps(SYSTEM, ensure_ascii=False)} + {end} }}}}"
            "{% endif %}"
            "{% for message in messages %}{{ openings[message['role']] }}"
            "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
            "{% for part in message['content'] %}"
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
    """Returns the tokenizer of a published folder, from tokenizer.json where there is one, else from tokenizer.model.

    Its end token is the one that ends a turn, because the model generates that one last.

    Raises:
        UserError: there is no readable tokenizer, it lacks a token of the chat or of pictures, or its added tokens have
            other ids than the folder's other files say.
    """
    config = read_json(source / "tokenizer_config.json")
    added = _added_tokens(source, config)
    if (source / "tokenizer.json").is_file():
        try:
            tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{source / 'tokenizer.json'}: not a tokenizer ({error})") from None
        edge_tokens = {}  # the file itself says which tokens stand at the edges of a text
    elif (source / "tokenizer.model").is_file():
        tokenizer = read_sentencepiece(source / "tokenizer.model", added, legacy=config.get("legacy") is not False)
        edge_tokens = {
            "add_bos_token": config.get("add_bos_token", True),
            "add_eos_token": config.get("add_eos_token", False),
        }
    else:
        raise UserError(f"{source}: neither tokenizer.json nor tokenizer.model")

    for index, token in added.items():
        if tokenizer.token_to_id(token.content) != index:
            got = tokenizer.token_to_id(token.content)
            raise UserError(f"{source}: token {token.content!r}: got id {got}, the added tokens say {index}")
    for token in (*NAMED_TOKENS.values(), *chat.tokens()):
        if tokenizer.token_to_id(token) is None:
            raise UserError(f"{source}: the tokenizer has no token {token!r}")
    special = {name: _text(config[name]) for name in ("bos_token", "unk_token", "pad_token") if config.get(name)}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"pad_token": _text(config.get("eos_token") or chat.end)} | special | edge_tokens,
        eos_token=chat.end,
        model_max_length=config.get("model_max_length"),
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
    image_settings = {
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
    tile_settings = {"crop_to_patches": True, "min_patches": tiles[0], "max_patches": tiles[1]}
    processor_config = {
        "processor_class": "InternVLProcessor",
        "image_seq_length": tile_tokens,
        "image_processor": {"image_processor_type": "GotOcr2ImageProcessor", **image_settings, **tile_settings},
        "video_processor": {"video_processor_type": "InternVLVideoProcessor", **image_settings},
    }
    (folder / "processor_config.json").write_text(json.dumps(processor_config, indent=2) + "\n", encoding="utf-8")


def _added_tokens(source: Path, config: dict) -> dict[int, AddedToken]:
    """Returns id: token for the tokens that were added to the vocabulary.

    They stand in tokenizer_config.json (`config`). Those that it does not list stand in added_tokens.json.
    """
    added_ids = read_json(source / "added_tokens.json") if (source / "added_tokens.json").is_file() else {}
    added = {}
    try:
        for index, token in config.get("added_tokens_decoder", {}).items():
            flags = {flag: token.get(flag, False) for flag in ("lstrip", "rstrip", "single_word", "special")}
            added[int(index)] = AddedToken(token["content"], normalized=False, **flags)
        for content, index in added_ids.items():
            added.setdefault(int(index), AddedToken(content, normalized=False, special=True))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: its added tokens are not readable ({error!r})") from None
    return added


def _text(token: str | dict) -> str:
    """Returns the text of a token, which tokenizer_config.json gives as a text or as an object with `content`."""
    return token["content"] if isinstance(token, dict) else token
