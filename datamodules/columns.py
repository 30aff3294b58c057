"""The columns of ThinkMorph's parquet files, and the schema that they are published in."""

import json

import pyarrow as pa

PID = "pid"
QUESTION = "question"
ANSWER = "answer"
PROBLEM_IMAGE = "problem_image_0"
# The published column is misspelt; that of the images is not.
TEXT_THOUGHT = "resoning_thought_{}"
VISUAL_THOUGHT = "reasoning_image_{}"
TASK = "task"
TEXT_ONLY_THOUGHT = "full_text_only_thought"
COLUMNS = (
    PID,
    QUESTION,
    ANSWER,
    PROBLEM_IMAGE,
    TEXT_THOUGHT.format(0),
    VISUAL_THOUGHT.format(0),
    TEXT_THOUGHT.format(1),
    TASK,
    TEXT_ONLY_THOUGHT,
)
REQUIRED = (PID, QUESTION, ANSWER, PROBLEM_IMAGE, TEXT_THOUGHT.format(0))
"""A row may lack a thought or a picture, a file may not lack what every row needs."""
MAX_THOUGHTS = 8
"""Rows may have thoughts numbered 0 to 7; the published ones have one visual, two in text."""

_IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def published_schema() -> pa.Schema:
    """Names and types, with the metadata that makes ``datasets`` decode pictures."""
    is_image = {column: "image" in column for column in COLUMNS}
    features = {
        column: {"_type": "Image"} if image else {"dtype": "string", "_type": "Value"}
        for column, image in is_image.items()
    }
    fields = [(column, _IMAGE_TYPE if image else pa.string()) for column, image in is_image.items()]
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(fields, metadata=metadata)


def columns_read(names: list[str]) -> list[str]:
    """Those among the names of a file that a problem is made from."""
    thoughts = [
        template.format(number)
        for number in range(MAX_THOUGHTS)
        for template in (TEXT_THOUGHT, VISUAL_THOUGHT)
    ]
    return [column for column in dict.fromkeys((*COLUMNS, *thoughts)) if column in names]
