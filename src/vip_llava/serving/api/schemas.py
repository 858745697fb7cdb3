"""What a request to the API may hold and what comes back: the shapes, and nothing that is done.

The names are those of the OpenAI API. Values are checked strictly and unknown keys are errors: a
setting that would do nothing must not look as if it did.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from vip_llava.serving.api.region_schema import region_schema

__all__ = [
    "ChatRequest",
    "ChatResponse",
    "ImagePart",
    "ModelCard",
    "ModelList",
    "Removed",
    "Turn",
    "Uploaded",
]


def _checked(text: str) -> str:
    # JSON can spell half of a surrogate pair, which is no character and breaks whatever encodes it.
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half of a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_checked)]


class _Given(BaseModel):
    """Part of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TextPart(_Given):
    """A text of a message."""

    type: Literal["text"]
    text: Text


class ImageAddress(_Given):
    """Where an image is."""

    url: Text = Field(
        description="data:image/...;base64,... or upload:ID; https:// only from hosts that the "
        "operator lists."
    )
    detail: Literal["auto", "low", "high"] | None = Field(
        default=None, description="Taken for compatibility; every image is seen the same way."
    )


class ImagePart(_Given):
    """An image of a message, and what a person points at in it."""

    type: Literal["image_url"]
    image_url: ImageAddress
    regions: list[Annotated[Any, WithJsonSchema(region_schema())]] = Field(
        default=[],
        description="Drawn on this image; <region:ID> in a text of a person speaks of one.",
    )


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemTurn(_Given):
    """What the model is told before the conversation; the first message only."""

    role: Literal["system", "developer"]
    content: Text | list[TextPart]
    name: Text | None = None


class UserTurn(_Given):
    """What a person says and shows."""

    role: Literal["user"]
    content: Text | list[Part]
    name: Text | None = None


class AssistantTurn(_Given):
    """What a model answered before."""

    role: Literal["assistant"]
    content: Text | list[TextPart]
    name: Text | None = None
    refusal: None = None


Turn = Annotated[SystemTurn | UserTurn | AssistantTurn, Field(discriminator="role")]


class StreamOptions(_Given):
    """What a stream tells besides the answer."""

    include_usage: bool = False


class TextFormat(_Given):
    """The only form of answers."""

    type: Literal["text"]


class ChatRequest(_Given):
    """The body of POST /v1/chat/completions."""

    model: Text = Field(description="A name from /v1/models.")
    messages: list[Turn] = Field(min_length=1, description="Oldest first; the last is a user's.")
    max_tokens: int | None = Field(default=None, ge=1, description="Most tokens of an answer.")
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="The newer name of max_tokens."
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0, the default, takes the most probable token."
    )
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1_000_000, description="0: off.")
    min_p: float | None = Field(default=None, ge=0, le=1)
    # Lower ones are allowed to the library, but overflow the arithmetic.
    repetition_penalty: float | None = Field(default=None, ge=0.1, le=10)
    n: int | None = Field(default=None, ge=1, description="Answers; the seeds follow one another.")
    stop: Text | list[Text] | None = Field(default=None, description="Texts that end the answer.")
    seed: int | None = Field(default=None, ge=0, le=2**53 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_image: bool = Field(
        default=False, description="Send the images back as the model was shown them (PNG)."
    )
    user: Text | None = Field(default=None, description="Taken for compatibility and not used.")
    frequency_penalty: float | None = Field(default=None, ge=0, le=0, description="Only 0.")
    presence_penalty: float | None = Field(default=None, ge=0, le=0, description="Only 0.")
    response_format: TextFormat | None = None


class Usage(BaseModel):
    """Tokens of a request and all its answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class Spoken(BaseModel):
    """An answer as a message."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One answer."""

    index: int
    message: Spoken
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, Any] | None


class ImageInput(BaseModel):
    """An image as the model was shown it."""

    message: int = Field(description="Which message it belongs to, from 0.")
    sha256: str = Field(description="Of mode, size and pixels of the drawn image.")
    width: int
    height: int
    regions: list[dict[str, Any]] = Field(description="As drawn: in pixels, everything filled in.")
    image: str | None = Field(description="A data: address (PNG), where it was asked for.")


class Extension(BaseModel):
    """What this project tells besides what the OpenAI API has."""

    images: list[ImageInput]
    prompt: str
    notes: list[str]
    seed: int
    timing: dict[str, float]


class ChatResponse(BaseModel):
    """The answer of POST /v1/chat/completions without `stream`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: None = None
    vip_llava: Extension


class ModelCard(BaseModel):
    """A model that can be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vip-llava"
    vip_llava: dict[str, Any] | None = Field(
        default=None, description="Architecture, type of numbers, template; null while loading."
    )


class ModelList(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Uploaded(BaseModel):
    """An image that was uploaded; write upload:ID where an address is asked for."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    width: int
    height: int
    expires_at: int


class Removed(BaseModel):
    """An upload that is gone."""

    id: str
    deleted: bool
