"""DocVQA's validation: four questions about three pages. LLaVA has no files of it."""

from pathlib import Path

import datasets

from tests.benchmark_files.pictures import stored
from tests.benchmark_files.tables import write_split

ROWS = [
    {"questionId": "337", "question": "What is the date?", "answers": ["1/8/93", "Jan 8 1993"], "docId": 279},
    {"questionId": "338", "question": "Who signed it?", "answers": ["P. Carter"], "docId": 279},
    {"questionId": "339", "question": "What is the total?", "answers": ["$ 1,200"], "docId": 280},
    {"questionId": "340", "question": "Which page is it?", "answers": ["3"], "docId": 281},
]


def write_hub(folder: Path) -> None:
    rows = [
        {
            "questionId": row["questionId"],
            "question": row["question"],
            "question_types": ["handwritten"],
            "image": stored("white"),
            "docId": row["docId"],
            "ucsf_document_page_no": "1",
            "answers": row["answers"],
            "data_split": "val",
        }
        for row in ROWS
    ]
    write_split(rows, {"image": datasets.Image()}, folder / "DocVQA", "validation")
