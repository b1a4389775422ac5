"""Reports as JSON and Markdown."""

from __future__ import annotations

import json

from finetune.metrics.report import Report, table

REPORT = Report({"f1": 27.344, "nist_4": 1.4}, {"fed": "needs a model"}, {"nist_4": "nltk 3"})


def test_json_holds_all_of_it():
    assert json.loads(REPORT.to_json()) == {
        "values": {"f1": 27.344, "nist_4": 1.4},
        "unavailable": {"fed": "needs a model"},
        "notes": {"nist_4": "nltk 3"},
    }


def test_markdown_puts_papers_beside_ours():
    beside = {"BART (Table 1)": {"perplexity": 8.64, "f1": 26.31}}
    assert REPORT.with_values({"perplexity": 1234.5}).markdown(beside, name="tiny") == (
        "| metric | tiny | BART (Table 1) |\n"
        "| --- | ---: | ---: |\n"
        "| perplexity | 1,234.50 | 8.640 |\n"
        "| f1 | 27.34 | 26.31 |\n"
        "| nist_4 | 1.400 | – |\n"
        "\n"
        "Not available:\n"
        "\n"
        "- `fed`: needs a model\n"
        "\n"
        "Metrics:\n"
        "\n"
        "- `nist_4`: nltk 3\n"
    )


def test_a_table_of_groups_has_a_row_for_every_metric_of_any():
    assert table({"1 short": {"f1": 1.0}, "3 long": {"f1": 2.0, "safe": 0.0}}) == (
        "| metric | 1 short | 3 long |\n| --- | ---: | ---: |\n| f1 | 1.000 | 2.000 |\n| safe | – | 0.000 |\n"
    )


def test_a_bar_in_a_heading_does_not_break_the_table():
    assert table({"a|b": {"f1": 1.0}}).startswith("| metric | a\\|b |\n")
