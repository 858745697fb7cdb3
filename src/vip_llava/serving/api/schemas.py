"""The request and response models of the API, with the names of the OpenAI API.

Values are checked strictly and unknown keys are errors: a parameter without effect must not be
accepted silently.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from vip_llava.serving.api.region_schema import region_schema

__all__ = [
    "ChatMessage",
    "ChatRequest",
    "ChatResponse",
    "ImagePart",
    "ModelCard",
    "ModelList",
    "TextPart",
    "UploadCreated",
    "UploadDeleted",
]


def _check_encodable(text: str) -> str:
    # JSON can escape a lone surrogate, which UTF-8 can't encode.
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain a lone surrogate") from None
    return text


Text = Annotated[str, AfterValidator(_check_encodable)]


class _RequestModel(BaseModel):
    """Base of all request models: strict, frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TextPart(_RequestModel):
    """A text part of a message."""

    type: Literal["text"]
    text: Text


class ImageURL(_RequestModel):
    """The URL of an image."""

    url: Text = Field(
        description="data:image/...;base64,... or upload:ID; https:// only from hosts that the "
        "operator allows."
    )
    detail: Literal["auto", "low", "high"] | None = Field(
        default=None, description="Accepted for compatibility; it has no effect."
    )


class ImagePart(_RequestModel):
    """An image part of a message, with the regions on it."""

    type: Literal["image_url"]
    image_url: ImageURL
    regions: list[Annotated[Any, WithJsonSchema(region_schema())]] = Field(
        default=[],
        description="Drawn on this image; <region:ID> in a user message names one.",
    )


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemMessage(_RequestModel):
    """The system message; only the first message can be one."""

    role: Literal["system", "developer"]
    content: Text | list[TextPart]
    name: Text | None = None


class UserMessage(_RequestModel):
    """A message of the user, with texts and images."""

    role: Literal["user"]
    content: Text | list[Part]
    name: Text | None = None


class AssistantMessage(_RequestModel):
    """An earlier answer of the model."""

    role: Literal["assistant"]
    content: Text | list[TextPart]
    name: Text | None = None
    refusal: None = None


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_RequestModel):
    """What a stream contains besides the answer."""

    include_usage: bool = False


class TextFormat(_RequestModel):
    """The only supported response format."""

    type: Literal["text"]


class ChatRequest(_RequestModel):
    """The body of POST /v1/chat/completions."""

    model: Text = Field(description="A name from /v1/models.")
    messages: list[ChatMessage] = Field(
        min_length=1, description="Oldest first; the last must be a user message."
    )
    max_tokens: int | None = Field(default=None, ge=1, description="Limit of generated tokens.")
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="The newer name of max_tokens."
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0, the default: greedy decoding."
    )
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1_000_000, description="0: off.")
    min_p: float | None = Field(default=None, ge=0, le=1)
    # The library accepts lower values, but they overflow float32.
    repetition_penalty: float | None = Field(default=None, ge=0.1, le=10)
    n: int | None = Field(
        default=None, ge=1, description="Number of answers; they use consecutive seeds."
    )
    stop: Text | list[Text] | None = Field(default=None, description="Texts that end the answer.")
    seed: int | None = Field(default=None, ge=0, le=2**53 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_image: bool = Field(
        default=False, description="Return the images as the model saw them (PNG)."
    )
    user: Text | None = Field(
        default=None, description="Accepted for compatibility; it has no effect."
    )
    frequency_penalty: float | None = Field(default=None, ge=0, le=0, description="Only 0.")
    presence_penalty: float | None = Field(default=None, ge=0, le=0, description="Only 0.")
    response_format: TextFormat | None = None


class Usage(BaseModel):
    """Token counts of a request and all its answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class ReplyMessage(BaseModel):
    """An answer as a message."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One answer."""

    index: int
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, Any] | None


class ImageInput(BaseModel):
    """An image as the model saw it."""

    message: int = Field(description="Index of its message in `messages`.")
    sha256: str = Field(description="Over mode, size and pixels of the drawn image.")
    width: int
    height: int
    regions: list[dict[str, Any]] = Field(
        description="As drawn: in pixels, with all defaults filled in."
    )
    image: str | None = Field(description="A data: URL (PNG) if return_image was set.")


class Extension(BaseModel):
    """What this project adds to the responses of the OpenAI API."""

    images: list[ImageInput]
    prompt: str
    notes: list[str]
    seed: int
    timing: dict[str, float]


class ChatResponse(BaseModel):
    """The response of POST /v1/chat/completions without `stream`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: None = None
    vip_llava: Extension


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vip-llava"
    vip_llava: dict[str, Any] | None = Field(
        default=None, description="Architecture, dtype, template; null while loading."
    )


class ModelList(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class UploadCreated(BaseModel):
    """An uploaded image; use upload:ID as its URL."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    width: int
    height: int
    expires_at: int


class UploadDeleted(BaseModel):
    """A deleted upload."""

    id: str
    deleted: bool
