"""What the server answers, as types: FastAPI makes its description of them."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """What is wrong with a request."""

    error: str = Field(description="One sentence.")


class ClassChoice(BaseModel):
    """A class that a network finds probable."""

    label: int = Field(ge=0, description="Index of the output.")
    name: str
    probability: float = Field(ge=0, le=1)


class NetworkAnswer(BaseModel):
    """What a network says of an image."""

    latency_ms: float = Field(ge=0, description="Of the network alone, for this one image.")
    top: list[ClassChoice] = Field(description="The most probable first.")


class Prediction(BaseModel):
    """What the networks say of an image."""

    student: NetworkAnswer
    teacher: NetworkAnswer | None
    same_class: bool | None = Field(
        description="Whether both choose the class of one name; null without a teacher."
    )
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    is_first_of_several: bool = Field(
        description="Whether the file holds further images, which nobody looked at."
    )
    decode_ms: float = Field(ge=0)


class NetworkFacts(BaseModel):
    """A network of this server."""

    name: str
    origin: str
    classes: int
    height: int
    width: int
    runtime: str | None
    top1: float | None = Field(description="Percent on its test split, where its card says so.")
    top1_of: str | None = Field(
        description="What top1 was measured on, or that it is only claimed, in words."
    )
    params: int | None
    bytes: int | None = Field(description="Of its file, where it is one.")


class Bounds(BaseModel):
    """What a request may have."""

    bytes: int
    pixels: int
    seconds: float
    types: list[str]


class Models(BaseModel):
    """The networks of this server, and what a request may have."""

    student: NetworkFacts
    teacher: NetworkFacts | None
    limits: Bounds


class Health(BaseModel):
    """That the server answers."""

    status: str
    requests: int = Field(ge=0, description="Images that are received, wait or are classified.")
